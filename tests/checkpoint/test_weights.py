import pytest
import torch
import torchvision
from torch import Tensor, nn

from prune2deploy.checkpoint.unwrap import modern_names
from prune2deploy.checkpoint.weights import load_weights
from prune2deploy.errors import CheckpointError
from prune2deploy.model.spec import ModelSpec, build_model

RESNET = ModelSpec.parse("zoo:resnet20")
IMPORTED = ModelSpec.parse("some.module:factory")


def weights_of(spec: ModelSpec, *, seed: int = 5) -> dict[str, Tensor]:
    return dict(build_model(spec, seed=seed).state_dict())


def test_weights_are_copied_and_not_shared() -> None:
    model, weights = build_model(RESNET, seed=0), weights_of(RESNET)
    assert load_weights(model, weights, spec=RESNET) == ()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    weights["fc.bias"].fill_(9)
    assert not (model.fc.bias == 9).any()


def test_differences_are_grouped_and_leave_the_model_unchanged() -> None:
    model = build_model(RESNET, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = weights_of(RESNET)
    weights["other.weight"] = torch.ones(1)
    weights["fc.weight"] = torch.ones(7, 64)
    del weights["fc.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, spec=RESNET, where="a.pth")
    assert str(caught.value).startswith(
        "a.pth: does not fit zoo:resnet20: 1 missing (fc.bias), 1 unexpected (other.weight), "
        "1 of another shape (fc.weight is 7x64, not 10x64)"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_nearest_architecture_is_suggested() -> None:
    with pytest.raises(CheckpointError, match=r"try --model torchvision:resnet18\?num_classes=3"):
        load_weights(
            build_model(RESNET, seed=0),
            torchvision.models.resnet18(num_classes=3).state_dict(),
            spec=RESNET,
        )


def test_counters_that_old_files_lack_are_left_at_zero() -> None:
    weights = {name: tensor for name, tensor in weights_of(RESNET).items() if "num_batches" not in name}
    model = build_model(RESNET, seed=0)
    load_weights(model, weights, spec=RESNET)
    assert torch.equal(model.fc.weight, weights["fc.weight"])
    assert model.bn1.num_batches_tracked == 0


def test_heads_that_serve_training_only_are_left_out_and_noted() -> None:
    spec = ModelSpec.parse("torchvision:googlenet?num_classes=3")
    weights = weights_of(spec.with_arguments(aux_logits=True))
    model = build_model(spec, seed=0)
    notes = load_weights(model, weights, spec=spec)
    assert notes == ("aux1.* serves training only and was left out", "aux2.* serves training only and was left out")
    assert torch.equal(model.fc.weight, weights["fc.weight"])


def test_half_precision_weights_are_converted_and_noted() -> None:
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights_of(RESNET).items()
    }
    model = build_model(RESNET, seed=0)
    assert load_weights(model, weights, spec=RESNET) == ("weights were converted from float16 to float32",)
    assert torch.equal(model.fc.weight, weights["fc.weight"].float())


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)


def test_a_prefix_that_reading_took_off_is_put_back_where_the_model_has_it() -> None:
    model = Wrapped()
    load_weights(model, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, spec=IMPORTED)
    assert torch.equal(model.model.weight, torch.ones(2, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embedding.weight


def test_the_second_name_of_a_shared_tensor_may_be_absent() -> None:
    model = Tied()
    load_weights(model, {"embedding.weight": torch.ones(3, 2)}, spec=IMPORTED)
    assert torch.equal(model.head.weight, torch.ones(3, 2))


def test_old_densenet_names_are_read() -> None:
    names = modern_names(
        {
            "features.denseblock1.denselayer1.norm.1.weight": torch.ones(1),
            "features.denseblock1.denselayer1.conv.2.weight": torch.ones(1),
            "features.norm5.weight": torch.ones(1),
        }
    )
    assert set(names) == {
        "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock1.denselayer1.conv2.weight",
        "features.norm5.weight",
    }
    assert set(names) <= set(torchvision.models.densenet121().state_dict())
