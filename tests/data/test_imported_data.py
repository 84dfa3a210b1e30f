import sys

import pytest
import torch
from torch.utils.data import DataLoader

from prune2deploy.data.load import load_data
from prune2deploy.errors import DataError

HEADER = """
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

def pair(labels=(0, 1, 2), shape=(1, 4, 5), dtype=torch.float32):
    return TensorDataset(torch.rand(len(labels), *shape).to(dtype), torch.tensor(labels))
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load data from a module, in the current folder, with the given text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(source, **options):
        (tmp_path / "their_data.py").write_text(HEADER + source)
        return load_data("their_data:make", **options)

    yield load
    sys.modules.pop("their_data", None)


def test_two_datasets_become_splits(load):
    splits = load("def make():\n    return pair(), pair((2, 0))\n")
    assert splits.class_names == ("0", "1", "2")
    assert splits.input_shape == (1, 4, 5)
    assert splits.normalization is None
    assert (len(splits.train), len(splits.calibration), len(splits.evaluation)) == (3, 3, 2)
    assert type(splits.evaluation[0][1]) is int
    images, labels = next(iter(DataLoader(splits.evaluation, batch_size=2)))
    assert images.shape == (2, 1, 4, 5)
    assert labels.tolist() == [2, 0]


def test_the_factory_is_told_what_it_asks_for(load):
    splits = load(
        "def make(input_shape, augment):\n    assert augment is False\n"
        "    return pair(shape=input_shape), pair(shape=input_shape)\n",
        input_shape=(3, 6, 6),
        augment=False,
    )
    assert splits.input_shape == (3, 6, 6)


def test_classes_are_taken_from_the_dataset_below_a_subset(load):
    splits = load(
        "class Named(TensorDataset):\n    classes = ['ant', 'bee', 'cow']\n"
        "def make():\n    whole = Named(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]))\n"
        "    return Subset(whole, [0, 1]), Subset(whole, [2, 3])\n"
    )
    assert splits.class_names == ("ant", "bee", "cow")


def test_classes_are_counted_where_nothing_names_them(load):
    source = """
class Plain(Dataset):
    def __len__(self):
        return {length}
    def __getitem__(self, index):
        return torch.rand(1, 4, 4), index % 4
def make():
    return Plain(), Plain()
"""
    assert load(source.format(length=9)).class_count == 4
    sys.modules.pop("their_data")
    with pytest.raises(DataError, match="attribute 'classes'"):
        load(source.format(length=10_001) + "#")


def test_splits_are_passed_through(load):
    splits = load(
        "from prune2deploy.data.splits import DataSplits\n"
        "def make():\n    return DataSplits(name='mine', train=pair(), evaluation=pair(), calibration=pair(),"
        " class_names=('a', 'b', 'c'), input_shape=(1, 4, 5))\n"
    )
    assert splits.name == "mine"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("make = 3", "cannot be called"),
        ("def make():\n    return 3", "returns int"),
        ("def make():\n    return pair(), None", "evaluation is NoneType"),
        ("def make():\n    return pair(), Subset(pair(), [])", "evaluation is empty"),
        ("def make():\n    raise OSError('disk on fire\\nsecond line')", "OSError: disk on fire"),
        ("def make():\n    return pair(dtype=torch.float64), pair()", r"torch.float64 of shape 1x4x5"),
        ("def make():\n    return pair(shape=(4,)), pair()", "of shape 4"),
        ("def make():\n    return [1, 2], [3]", "int, not an image and a label"),
        ("def make():\n    return [(torch.rand(1, 2, 2), 'a')], [3]", "its label is 'a'"),
        ("def make():\n    return pair((0, 0)), pair((0, 0))", "fewer than two classes"),
        ("", "has no 'make'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(load, source, words):
    with pytest.raises(DataError, match=words) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_samples_that_do_not_fit_are_named_when_they_are_read(load):
    splits = load(
        "def make():\n    return pair(), [(torch.rand(1, 4, 5), 3), (torch.rand(1, 5, 5), 0)]\n",
    )
    with pytest.raises(DataError, match="sample 0: has label 3, outside 0 to 2"):
        splits.evaluation[0]
    with pytest.raises(DataError, match="sample 1: has shape 1x5x5, not 1x4x5"):
        splits.evaluation[1]


def test_another_shape_than_asked_for_is_refused(load):
    with pytest.raises(DataError, match="images of 1x4x5, but 3x8x8"):
        load("def make():\n    return pair(), pair()\n", input_shape=(3, 8, 8))


def test_an_absent_module_is_named():
    with pytest.raises(DataError, match="no module 'absent_data'"):
        load_data("absent_data:make")


def test_labels_may_be_tensors(load):
    splits = load("def make():\n    return pair(), pair()\n")
    assert [splits.train[index][1] for index in range(3)] == [0, 1, 2]
    assert isinstance(splits.train[0][0], torch.Tensor)
