import subprocess
import sys

import pytest

from prune2deploy.data.spec import DataSpec
from prune2deploy.errors import DataError


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("digits", "digits", ""),
        ("textures", "textures", ""),
        ("cifar10:data", "cifar10", "data"),
        ("cifar100:/data/cifar", "cifar100", "/data/cifar"),
        ("imagefolder:C:/pictures", "imagefolder", "C:/pictures"),
        ("hf:owner/name", "hf", "owner/name"),
        ("package.module:factory", "import", "package.module:factory"),
    ],
)
def test_a_data_spec_reads_back_from_its_text(text, kind, place):
    spec = DataSpec.parse(text)
    assert (spec.kind, spec.place) == (kind, place)
    assert str(spec) == text
    assert DataSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["", "digit", "digits:folder", "textures:16", "cifar10", "hf:", "imagefolder: ", "some/folder", "a b:c"]
)
def test_texts_that_are_no_data_spec_are_refused_in_one_line(text):
    with pytest.raises(DataError) as caught:
        DataSpec.parse(text)
    assert "\n" not in str(caught.value)
    assert "imagefolder:DIR" in str(caught.value)


def test_parsing_a_data_spec_imports_no_torch():
    program = """
import sys
from prune2deploy.data.spec import DataSpec
DataSpec.parse("digits")
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
