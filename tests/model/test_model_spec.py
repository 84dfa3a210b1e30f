import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.errors import ModelError
from prune2deploy.model.spec import ModelSpec

_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.lists(st.integers()),
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("resnet20", "zoo:resnet20"),
        ("zoo:resnet20", "zoo:resnet20"),
        (" torchvision:resnet50 ", "torchvision:resnet50"),
        ("timm:resnet50?num_classes=10&in_chans=1", "timm:resnet50?in_chans=1&num_classes=10"),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("package.module:factory?width=2", "package.module:factory?width=2"),
        ("module:Class.create", "module:Class.create"),
        ('m:f?name="10"&other=ten&scale=1e-1', 'm:f?name="10"&other=ten&scale=0.1'),
        ("m:f?flag=true&nothing=null&sizes=[1, 2]", "m:f?flag=true&nothing=null&sizes=[1,2]"),
    ],
)
def test_a_spec_has_one_canonical_text(text, canonical):
    assert str(ModelSpec.parse(text)) == canonical


def test_argument_values_are_json_where_they_can_be():
    spec = ModelSpec.parse('m:f?a=1&b=0.5&c=true&d=word&e="3"&f=NaN&g=')
    assert spec.arguments == {"a": 1, "b": 0.5, "c": True, "d": "word", "e": "3", "f": "NaN", "g": ""}


@given(arguments=st.dictionaries(_NAMES, _VALUES, max_size=4))
def test_every_spec_reads_back_from_its_text(arguments):
    spec = ModelSpec(source="timm", name="resnet50", arguments=arguments)
    assert ModelSpec.parse(str(spec)).arguments == arguments
    assert ModelSpec.parse(str(spec)) == spec
    assert hash(ModelSpec.parse(str(spec))) == hash(spec)


def test_specs_differ_where_an_argument_differs_only_in_type():
    assert ModelSpec.parse("resnet20?x=1") != ModelSpec.parse("resnet20?x=true")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "timm:",
        "resnet 50",
        "../resnet",
        "timm:a:b",
        "resnet20?",
        "resnet20?x",
        "resnet20?=1",
        "resnet20?x=1&x=2",
    ],
)
def test_texts_that_are_no_spec_are_refused_in_one_line(text):
    with pytest.raises(ModelError) as caught:
        ModelSpec.parse(text)
    assert "\n" not in str(caught.value)


def test_adding_arguments_leaves_the_spec_as_it_was():
    spec = ModelSpec.parse("resnet20?num_classes=10")
    assert str(spec.with_arguments(num_classes=7, in_channels=1)) == "zoo:resnet20?in_channels=1&num_classes=7"
    assert str(spec) == "zoo:resnet20?num_classes=10"


def test_parsing_a_spec_imports_no_torch():
    program = """
import sys
from prune2deploy.model.spec import ModelSpec
ModelSpec.parse("resnet20")
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
