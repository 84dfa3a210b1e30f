import sys

import pytest
import torch
from torch import nn

from prune2deploy.errors import ModelError
from prune2deploy.model.spec import (
    ModelSpec,
    architecture_names,
    build_model,
    default_input_shape,
    default_normalization,
    fit_to_data,
    training_only_prefixes,
)


def on_meta(text):
    with torch.device("meta"):
        return build_model(ModelSpec.parse(text))


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Write ``NAME.py`` into the current folder; afterwards the interpreter has forgotten it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_seed_gives_the_same_weights_and_leaves_the_random_state_alone():
    spec = ModelSpec.parse("resnet20")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build_model(spec, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = build_model(spec, seed=1)
    other = build_model(spec, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_without_a_seed_the_callers_random_state_decides():
    torch.manual_seed(3)
    first = build_model(ModelSpec.parse("resnet20"))
    torch.manual_seed(3)
    assert torch.equal(first.conv1.weight, build_model(ModelSpec.parse("resnet20")).conv1.weight)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("resnet20", (3, 32, 32)),
        ("vgg16_bn?in_channels=1", (1, 32, 32)),
        ("torchvision:resnet50", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:efficientnet_b3", (3, 300, 300)),
        ("torchvision:vit_b_16?image_size=256", (3, 256, 256)),
        ("torchvision:fcn_resnet50", (3, 224, 224)),
    ],
)
def test_the_default_input_is_the_architectures_own(text, shape):
    assert default_input_shape(ModelSpec.parse(text), on_meta(text)) == shape


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("timm:resnet18?in_chans=1", (1, 224, 224)),
        ("timm:inception_v3", (3, 299, 299)),
        ("timm:vit_tiny_patch16_224?img_size=128", (3, 128, 128)),
        ("timm:vit_tiny_patch16_224?img_size=[96,128]", (3, 96, 128)),
    ],
)
def test_the_default_input_of_timm_is_its_configurations(text, shape):
    pytest.importorskip("timm")
    assert default_input_shape(ModelSpec.parse(text), on_meta(text)) == shape


def test_normalization_constants_come_with_published_architectures():
    pytest.importorskip("timm")
    for text, expected in {
        "resnet20": None,
        "torchvision:resnet18": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "timm:vit_tiny_patch16_224": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }.items():
        assert default_normalization(ModelSpec.parse(text), on_meta(text)) == expected


@pytest.mark.parametrize("text", ["torchvision:googlenet", "torchvision:inception_v3", "torchvision:fcn_resnet50"])
def test_auxiliary_training_heads_are_not_built_and_are_named(text):
    spec = ModelSpec.parse(text)
    prefixes = training_only_prefixes(spec)
    keys = on_meta(text).state_dict().keys()
    assert prefixes
    assert not [key for key in keys if key.startswith(prefixes)]


@pytest.mark.parametrize("text", ["torchvision:googlenet?aux_logits=true", "torchvision:fcn_resnet50?aux_loss=true"])
def test_auxiliary_heads_that_were_asked_for_are_part_of_the_model(text):
    assert training_only_prefixes(ModelSpec.parse(text)) == ()
    assert any(key.startswith("aux") for key in on_meta(text).state_dict())


def test_googlenet_is_really_drawn_from_its_truncated_normal():
    model = build_model(ModelSpec.parse("torchvision:googlenet"), seed=0)
    assert model.conv1.conv.weight.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet50", "torchvision:resnet50"),
        ("resnet21", "resnet20"),
        ("mobilenet", "torchvision:mobilenet"),
        ("no-such-thing", "the zoo has"),
        ("torchvision:resnet5o", "resnet50"),
        ("torchvision:ssd300_vgg16", "cannot be exported as a whole"),
        ("torchvision:resnet18?bar=1", "unexpected keyword argument 'bar'"),
        ("torchvision:resnet18?weights=DEFAULT", "checkpoint file"),
        ("resnet20?num_classes=ten", "cannot be built"),
        ("absent_module:factory", "no module 'absent_module'"),
        ("os.path:absent", "no 'absent'"),
        ("os.path:sep", "cannot be called"),
        ("collections:OrderedDict", "not an nn.Module"),
    ],
)
def test_models_that_cannot_be_built_say_so_in_one_line(text, words):
    with pytest.raises(ModelError) as caught:
        build_model(ModelSpec.parse(text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_timm_names_give_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="resnet50"):
        build_model(ModelSpec.parse("timm:resnet5o"))
    with pytest.raises(ModelError, match="foo"):
        build_model(ModelSpec.parse("timm:resnet50.foo"))


def test_absent_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'prune2deploy\[timm\]'"):
        build_model(ModelSpec.parse("timm:resnet50"))
    assert architecture_names("timm") == ()


def test_a_factory_of_the_current_folder_is_called_with_the_arguments(user_module):
    user_module("my_networks", "from torch import nn\ndef narrow(width=1):\n    return nn.Conv2d(3, width, 1)\n")
    model = build_model(ModelSpec.parse("my_networks:narrow?width=4"))
    assert model.out_channels == 4
    assert default_input_shape(ModelSpec.parse("my_networks:narrow"), model) == (3, 224, 224)


def test_a_class_is_a_factory_too(user_module):
    user_module("my_classes", "from torch import nn\nclass Net(nn.Sequential):\n    pass\n")
    assert isinstance(build_model(ModelSpec.parse("my_classes:Net")), nn.Sequential)


def test_parsing_runs_nothing_of_the_users_module(user_module, tmp_path):
    user_module("side_effect", f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ndef make(): ...\n")
    spec = ModelSpec.parse("side_effect:make")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ModelError, match="NoneType"):
        build_model(spec)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def make():\n    raise RuntimeError('the reason')", "RuntimeError: the reason"),
        ("import absent_dependency", "absent_dependency"),
        ("def make(:", "SyntaxError"),
    ],
)
def test_what_the_users_code_raises_is_quoted(user_module, source, words):
    user_module("failing", source)
    with pytest.raises(ModelError, match=words) as caught:
        build_model(ModelSpec.parse("failing:make"))
    assert caught.value.__cause__ is not None


def test_every_source_lists_its_architectures():
    assert "resnet20" in architecture_names("zoo")
    assert {"resnet50", "fcn_resnet50"} <= set(architecture_names("torchvision"))
    assert not {"ssd300_vgg16", "r3d_18"} & set(architecture_names("torchvision"))
    assert architecture_names("import") == ()
    with pytest.raises(ModelError, match="zoo, torchvision, timm"):
        architecture_names("elsewhere")


@pytest.mark.parametrize(
    ("text", "channels", "fitted"),
    [
        ("resnet20", 3, "zoo:resnet20?num_classes=7"),
        ("resnet20", 1, "zoo:resnet20?in_channels=1&num_classes=7"),
        ("torchvision:resnet18", 3, "torchvision:resnet18?num_classes=7"),
        ("timm:resnet18?in_chans=1", 1, "timm:resnet18?in_chans=1&num_classes=7"),
    ],
)
def test_a_spec_is_fitted_to_the_data(text, channels, fitted):
    assert str(fit_to_data(ModelSpec.parse(text), class_count=7, input_channels=channels)) == fitted


def test_a_users_factory_gets_only_the_arguments_it_has(user_module):
    user_module("adaptable", "def a(n_classes=2): ...\ndef b(): ...\n")
    assert (
        str(fit_to_data(ModelSpec.parse("adaptable:a"), class_count=7, input_channels=1)) == "adaptable:a?n_classes=7"
    )
    assert str(fit_to_data(ModelSpec.parse("adaptable:b"), class_count=7, input_channels=1)) == "adaptable:b"


@pytest.mark.parametrize(
    ("text", "channels", "words"),
    [
        ("torchvision:resnet18", 1, "3 channels"),
        ("resnet20?num_classes=10", 3, "num_classes=10, but the data has 7"),
        ("resnet20?in_channels=3", 1, "in_channels=3, but the data has 1"),
    ],
)
def test_a_spec_that_contradicts_the_data_is_refused(text, channels, words):
    with pytest.raises(ModelError, match=words):
        fit_to_data(ModelSpec.parse(text), class_count=7, input_channels=channels)
