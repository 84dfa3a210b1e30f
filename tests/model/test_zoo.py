import pytest
import torch
from torch import nn

from prune2deploy.model.spec import ModelSpec, architecture_names, build_model
from prune2deploy.model.zoo import ZOO

PUBLISHED_PARAMETERS = {
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet56": 855_770,
    "resnet18": 11_173_962,
    "wrn40_2": 2_243_546,
    "vgg16_bn": 14_728_266,
    "vgg19_bn": 20_040_522,
    "densenet_bc_40_12": 176_122,
    "densenet_bc_100_12": 769_162,
}


def build(name, **arguments):
    return build_model(ModelSpec(source="zoo", name=name, arguments=arguments), seed=0)


@pytest.mark.parametrize(("name", "count"), PUBLISHED_PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name, count):
    with torch.device("meta"):
        model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_entry_is_named_as_its_factory():
    assert {factory.__name__: name for name, factory in ZOO.items()} == {
        name: name for name in architecture_names("zoo")
    }


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 11, 17)])
def test_every_network_takes_any_channels_size_and_class_count(name, shape):
    model = build(name, in_channels=shape[0], num_classes=7)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet20", "resnet8_wide", "wrn40_2", "vgg16_bn", "densenet_bc_100_12"])
def test_every_family_exports_with_a_dynamic_batch(name):
    model = build(name).eval()
    images = torch.randn(2, 3, 16, 16)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    torch.testing.assert_close(program.module()(torch.cat([images, images]))[:2], model(images))


def test_vgg_pools_small_images_without_losing_them():
    model = build("vgg16_bn").eval()
    assert model.features(torch.randn(1, 3, 8, 8)).shape == (1, 512, 1, 1)
    assert model.features(torch.randn(1, 3, 64, 64)).shape == (1, 512, 2, 2)


def test_resnet_keys_are_those_of_published_cifar_weights():
    keys = set(build("resnet20").state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"} <= keys
    assert {"layer3.0.downsample.1.bias", "layer3.2.bn2.weight", "fc.weight"} <= keys
    assert "layer1.0.downsample.0.weight" not in keys


@pytest.mark.parametrize("name", ["resnet56", "vgg16_bn", "wrn40_2", "densenet_bc_100_12"])
def test_convolutions_start_with_the_variance_of_their_fan_out(name):
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


def test_slicing_weights_is_enough_to_narrow_a_network():
    model = build("resnet8_wide").eval()
    block = model.layer1[0]
    kept = torch.arange(0, 64, 2)
    with torch.no_grad():
        block.conv1.weight = nn.Parameter(block.conv1.weight[kept])
        block.conv2.weight = nn.Parameter(block.conv2.weight[:, kept])
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(block.bn1, name)[kept]
            setattr(block.bn1, name, nn.Parameter(tensor) if name in ("weight", "bias") else tensor)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
