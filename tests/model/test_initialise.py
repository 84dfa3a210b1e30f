import math
from pathlib import Path

import pytest
import torch
from torch import nn

from prune2deploy.errors import InputError
from prune2deploy.model.initialise import reinitialise
from prune2deploy.model.scaling import Fans, Law, law_of_numbers, law_of_variances
from prune2deploy.model.spec import ModelSpec, build_model

# Standard deviations over a few thousand values or more agree within this, far beyond four standard errors.
TOLERANCE = 0.12
ENOUGH_VALUES = 2_500


def narrow(dense: str, narrower: str, *, seed: int = 3) -> tuple[nn.Module, nn.Module, ModelSpec]:
    """A module of the narrower widths with garbage in it, the ground truth, and the dense spec."""
    model = build_model(ModelSpec.parse(narrower), seed=1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(123.0)
    return model, build_model(ModelSpec.parse(narrower), seed=seed + 10), ModelSpec.parse(dense)


def assert_spreads_agree(model: nn.Module, expected: nn.Module) -> None:
    compared = 0
    found_tensors = model.state_dict()
    for name, truth in expected.state_dict().items():
        found = found_tensors[name]
        if (truth == truth.flatten()[0]).all():
            assert torch.equal(found, truth), name
            continue
        if truth.numel() < ENOUGH_VALUES:
            continue
        compared += 1
        assert float(found.std() / truth.std()) == pytest.approx(1, abs=TOLERANCE), name
        assert abs(float(found.mean())) < 5 * float(truth.std()) / math.sqrt(truth.numel()) + 1e-12, name
    assert compared > 10


@pytest.mark.parametrize(
    ("dense", "narrower"),
    [
        ("torchvision:mobilenet_v2", "torchvision:mobilenet_v2?width_mult=0.5"),
        ("torchvision:mnasnet1_0", "torchvision:mnasnet0_5"),
        ("torchvision:resnet50", "torchvision:resnet50?width_per_group=32"),
        ("torchvision:shufflenet_v2_x1_0", "torchvision:shufflenet_v2_x0_5"),
        ("torchvision:densenet121", "torchvision.models.densenet:DenseNet?growth_rate=16&num_init_features=32"),
        ("torchvision:regnet_y_400mf", "torchvision:regnet_y_400mf"),
        ("timm:convnext_atto", "timm:convnext_atto?dims=[20,40,80,160]"),
        ("timm:mobilenetv2_100", "timm:mobilenetv2_050"),
    ],
)
def test_a_narrower_module_starts_as_its_architecture_starts_at_those_widths(dense: str, narrower: str) -> None:
    model, expected, spec = narrow(dense, narrower)
    record = reinitialise(model, spec, seed=3)
    assert_spreads_agree(model, expected)
    names = [name for name, _ in model.named_parameters()]
    assert sorted([*record.replayed, *record.constant, *record.rescaled]) == sorted(names)


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "densenet_bc_100_12"])
def test_networks_of_the_zoo_have_the_variance_of_he_et_al_at_any_width(name: str) -> None:
    spec = ModelSpec.parse(f"zoo:{name}")
    halved = halve(build_model(spec, seed=0))
    reinitialise(halved, spec, seed=4)
    large = {
        path: module.weight.detach()
        for path, module in halved.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.numel() > ENOUGH_VALUES
    }
    for path, weight in large.items():
        fan_out = weight.shape[0] * math.prod(weight.shape[2:])
        assert float(weight.var()) * fan_out == pytest.approx(2, rel=0.2), path
    assert len(large) > 5


def halve(dense: nn.Module) -> nn.Module:
    """Keep the first half of each dimension of each weight beyond the kernel; only shapes matter here."""
    for module in dense.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            halves = tuple(slice(max(size // 2, 1)) for size in parameter.shape[:2])
            setattr(module, name, nn.Parameter(parameter.detach()[halves].clone()))
        if isinstance(module, nn.BatchNorm2d):
            half = module.num_features // 2
            module.running_mean, module.running_var = module.running_mean[:half], module.running_var[:half] * 7
    return dense


USER_MODULE = """
import math
import torch
from torch import nn

class Handmade(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [3, 32, 64, 64, 128, 32]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, bias=False) for a, b in zip(widths, widths[1:]))
        self.gain = nn.Parameter(torch.full((8,), 0.25))
        for layer in self.layers:
            layer.weight.data.normal_(0, math.sqrt(2 / (9 * layer.out_channels)))
"""


def test_weights_that_no_function_of_torch_set_follow_the_law_of_their_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handmade_network_of_a_user.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = ModelSpec.parse("handmade_network_of_a_user:Handmade")
    halved = halve(build_model(spec, seed=0))
    record = reinitialise(halved, spec, seed=2)
    assert record.constant == ("gain",)
    assert torch.equal(halved.gain, torch.full((4,), 0.25))
    assert record.replayed == ()
    assert set(record.rescaled.values()) == {Law.FAN_OUT}
    for layer in halved.layers[1:]:
        assert float(layer.weight.detach().var()) * 9 * layer.weight.shape[0] == pytest.approx(2, rel=0.2)


def test_running_statistics_start_anew() -> None:
    spec = ModelSpec.parse("zoo:resnet20")
    halved = halve(build_model(spec, seed=0))
    halved.bn1.num_batches_tracked += 5
    reinitialise(halved, spec, seed=0)
    assert torch.equal(halved.bn1.running_var, torch.ones(8))
    assert halved.bn1.num_batches_tracked == 0


def test_a_seed_gives_the_same_weights_and_leaves_the_random_state_of_the_caller() -> None:
    spec = ModelSpec.parse("zoo:resnet20")
    model = halve(build_model(spec, seed=0))
    torch.manual_seed(8)
    expected = torch.rand(2)
    torch.manual_seed(8)
    reinitialise(model, spec, seed=5)
    assert torch.equal(torch.rand(2), expected)
    first = {name: parameter.clone() for name, parameter in model.named_parameters()}
    reinitialise(model, spec, seed=5)
    assert all(torch.equal(parameter, first[name]) for name, parameter in model.named_parameters())
    reinitialise(model, spec, seed=6)
    assert not torch.equal(model.conv1.weight, first["conv1.weight"])


def test_the_functions_of_torch_are_as_before_afterwards() -> None:
    before = nn.init.kaiming_normal_
    reinitialise(build_model(ModelSpec.parse("zoo:resnet20"), seed=0), ModelSpec.parse("zoo:resnet20"), seed=0)
    assert nn.init.kaiming_normal_ is before


def test_parameters_keep_their_objects_types_and_flags() -> None:
    spec = ModelSpec.parse("zoo:resnet20")
    model = build_model(spec, seed=0).to(torch.float64)
    model.conv1.weight.requires_grad_(False)
    weight = model.conv1.weight
    reinitialise(model, spec, seed=0)
    assert model.conv1.weight is weight
    assert weight.dtype == torch.float64
    assert not weight.requires_grad


def test_a_model_that_is_no_slice_of_the_spec_is_refused() -> None:
    with pytest.raises(InputError, match="no slice of zoo:resnet20"):
        reinitialise(nn.Linear(2, 2), ModelSpec.parse("zoo:resnet20"), seed=0)


def fans(fan_in: int, fan_out: int, groups: int = 1) -> Fans:
    return Fans(fan_in=fan_in, fan_out=fan_out, groups=groups)


@pytest.mark.parametrize("law", [Law.FAN_IN, Law.FAN_OUT, Law.GROUP_FAN_OUT])
def test_a_law_is_recognised_from_the_numbers_of_one_line_of_code(law: Law) -> None:
    layers = [fans(9, 72, 8), fans(144, 36, 2), fans(90, 450)]
    assert law_of_numbers([math.sqrt(2 / layer.width(law)) for layer in layers], layers) is law


def test_one_number_for_all_widths_is_a_constant() -> None:
    assert law_of_numbers([0.02, 0.02], [fans(9, 72), fans(144, 36)]) is Law.CONSTANT
    assert law_of_numbers([0.02], [fans(27, 64)]) is Law.CONSTANT
    assert law_of_numbers([0.02, 0.02], [fans(27, 64), fans(27, 64)]) is Law.CONSTANT
    assert law_of_numbers([0.0], [fans(27, 64)]) is Law.CONSTANT


def test_a_single_layer_follows_a_law_with_a_numerator_in_use() -> None:
    assert law_of_numbers([1 / math.sqrt(64)], [fans(64, 10)]) is Law.FAN_IN


def test_a_law_is_recognised_from_drawn_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [fans(9 * width, 90 * width // 3) for width in (16, 40, 64, 200)]

    def draws(law: Law) -> list[tuple[float, int, Fans]]:
        return [
            (float(torch.randn(4000, generator=generator).var()) * 2 / layer.width(law), 4000, layer)
            for layer in layers
        ]

    assert law_of_variances(draws(Law.FAN_IN)) is Law.FAN_IN
    assert law_of_variances(draws(Law.CONSTANT)) is Law.CONSTANT
    assert law_of_variances([]) is Law.CONSTANT
