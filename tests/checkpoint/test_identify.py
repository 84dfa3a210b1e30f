import re

import pytest
import torch
from torch import Tensor

from prune2deploy.checkpoint.compare import grouped
from prune2deploy.checkpoint.identify import identify_architecture
from prune2deploy.checkpoint.signatures import Signature, signature_of, stored_signatures
from prune2deploy.checkpoint.skeleton import build_skeleton
from prune2deploy.errors import CheckpointError
from prune2deploy.model.spec import ModelSpec


def weights_of(text: str) -> dict[str, Tensor]:
    """Names and shapes are all that identification looks at, so the tensors may be empty ones."""
    return dict(build_skeleton(ModelSpec.parse(text)).state_dict())


@pytest.mark.parametrize(
    "text",
    [
        "zoo:resnet20",
        "zoo:resnet20?in_channels=1&num_classes=7",
        "zoo:resnet8_wide?num_classes=5",
        "torchvision:resnet50",
        "torchvision:resnet50?num_classes=10",
        "torchvision:squeezenet1_1?num_classes=2",
        "torchvision:regnet_y_400mf",
        "torchvision:efficientnet_b0",
        "torchvision:fcn_resnet50?num_classes=5",
        "timm:resnet26d?in_chans=1&num_classes=3",
        "timm:convnext_atto",
        "timm:levit_128s?num_classes=20",
    ],
)
def test_architecture_class_count_and_input_channels_are_read_off_the_weights(text: str) -> None:
    found = identify_architecture(weights_of(text))
    assert str(found.spec) == text
    assert found.dropped == ()


def test_architectures_that_share_all_names_and_shapes_are_given_as_alternatives() -> None:
    found = identify_architecture(weights_of("torchvision:resnet50?num_classes=10"))
    alternatives = [str(spec) for spec in found.alternatives]
    assert "timm:resnet50?num_classes=10" in alternatives
    assert "timm:resnetblur50?num_classes=10" in alternatives
    assert "--model overrules" in found.notes[0]


def test_the_name_in_the_file_comes_first_where_it_fits() -> None:
    weights = weights_of("timm:resnetblur50?num_classes=3")
    found = identify_architecture(weights, hint="timm:resnetblur50?num_classes=1000")
    assert str(found.spec) == "timm:resnetblur50?num_classes=3"
    assert "torchvision:resnet50?num_classes=3" in [str(spec) for spec in found.alternatives]
    assert str(identify_architecture(weights, hint="timm:resnet18").spec) == "torchvision:resnet50?num_classes=3"
    assert str(identify_architecture(weights, hint="timm:no_such_model").spec) == "torchvision:resnet50?num_classes=3"


@pytest.mark.parametrize(
    ("text", "spec", "dropped"),
    [
        ("torchvision:googlenet?aux_logits=true", "torchvision:googlenet", ("aux1.", "aux2.")),
        ("torchvision:inception_v3?aux_logits=true", "torchvision:inception_v3", ("AuxLogits.",)),
    ],
)
def test_heads_that_serve_training_only_are_dropped_and_named(text: str, spec: str, dropped: tuple[str, ...]) -> None:
    found = identify_architecture(weights_of(text))
    assert str(found.spec) == spec
    assert found.dropped == dropped
    assert any(dropped[0] in note for note in found.notes)


def test_files_without_batch_counters_are_identified() -> None:
    weights = {name: tensor for name, tensor in weights_of("torchvision:resnet18").items() if "num_batches" not in name}
    assert str(identify_architecture(weights).spec) == "torchvision:resnet18"


def test_missing_layers_are_named_with_the_nearest_architecture() -> None:
    weights = weights_of("torchvision:resnet50")
    cut = {name: tensor for name, tensor in weights.items() if not name.startswith(("layer4.2.", "fc.bias"))}
    with pytest.raises(CheckpointError) as caught:
        identify_architecture(cut, where="half.pth")
    message = str(caught.value)
    assert message.startswith("half.pth: is of no architecture known here; the nearest is torchvision:resnet50: ")
    assert "16 missing (layer4.* 15 tensors, fc.bias)" in message
    assert "\n" not in message


def test_a_pruned_network_is_not_taken_for_the_dense_one() -> None:
    weights = weights_of("torchvision:resnet18")
    weights["layer1.0.conv1.weight"] = torch.empty(40, 64, 3, 3)
    with pytest.raises(CheckpointError, match=re.escape("layer1.0.conv1.weight is 40x64x3x3, not 64x64x3x3")):
        identify_architecture(weights)


def test_heads_that_contradict_each_other_do_not_match() -> None:
    weights = weights_of("torchvision:resnet18")
    weights["fc.bias"] = torch.empty(9)
    with pytest.raises(CheckpointError, match="nearest is torchvision:resnet18"):
        identify_architecture(weights)


def test_weights_of_no_known_kind_are_refused_without_a_wrong_neighbour() -> None:
    with pytest.raises(CheckpointError, match="nor near one"):
        identify_architecture({"encoder.theta": torch.empty(3), "decoder.theta": torch.empty(3)})


@pytest.mark.parametrize("text", ["torchvision:mobilenet_v2", "timm:resnet18", "timm:mobilenetv3_small_050"])
def test_stored_signatures_are_those_of_the_installed_libraries(text: str) -> None:
    spec = ModelSpec.parse(text)
    assert stored_signatures()[spec.source][spec.name] == signature_of(spec)


def test_signatures_survive_storing() -> None:
    signature = signature_of(ModelSpec.parse("zoo:resnet20"))
    assert Signature.from_row(signature.to_row()) == signature


def test_names_are_grouped_by_module_with_the_largest_first() -> None:
    names = ["fc.bias", "layer4.0.a", "layer4.0.b", "a.x", "b.x", "c.x", "d.x"]
    assert grouped(names) == "layer4.* 2 tensors, fc.bias, a.x, b.x and 2 more modules"
