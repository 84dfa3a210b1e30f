import sys

import numpy as np
import pytest
from PIL import Image

from prune2deploy.data.load import load_data
from prune2deploy.errors import DataError

datasets = pytest.importorskip("datasets")


def pictures(count, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)) for _ in range(count)]


def table(labels, *, label_feature, label_column="label", image_column="image"):
    features = datasets.Features({image_column: datasets.Image(), label_column: label_feature})
    return datasets.Dataset.from_dict({image_column: pictures(len(labels)), label_column: labels}, features=features)


def class_label():
    return datasets.ClassLabel(names=["cat", "dog"])


def test_a_saved_set_with_splits_is_read(tmp_path):
    saved = datasets.DatasetDict(
        train=table([0, 1, 0, 1], label_feature=class_label(), image_column="img"),
        test=table([1, 0], label_feature=class_label(), image_column="img"),
    )
    saved.save_to_disk(str(tmp_path / "set"))
    splits = load_data(f"hf:{tmp_path / 'set'}")
    assert splits.class_names == ("cat", "dog")
    assert splits.input_shape == (3, 12, 10)
    assert (len(splits.train), len(splits.evaluation)) == (4, 2)
    image, label = splits.evaluation[0]
    assert tuple(image.shape) == (3, 12, 10)
    assert label == 1


def test_validation_is_preferred_to_test(tmp_path):
    parts = {
        name: table([0, 1] * count, label_feature=class_label())
        for name, count in (("train", 2), ("test", 3), ("validation", 1))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    assert len(load_data(f"hf:{tmp_path / 'set'}").evaluation) == 2


def test_a_set_without_splits_gives_a_fifth_to_evaluation(tmp_path):
    table([0, 1] * 5, label_feature=class_label()).save_to_disk(str(tmp_path / "set"))
    splits = load_data(f"hf:{tmp_path / 'set'}", input_shape=(1, 8, 8))
    assert (len(splits.train), len(splits.evaluation)) == (8, 2)
    assert {splits.evaluation[index][1] for index in range(2)} == {0, 1}


@pytest.mark.parametrize(
    ("labels", "feature", "names"),
    [
        ([10, 2] * 3, "int64", ("2", "10")),
        (["wren", "emu"] * 3, "string", ("emu", "wren")),
    ],
)
def test_labels_without_declared_classes_are_numbered_in_order(tmp_path, labels, feature, names):
    table(labels, label_feature=datasets.Value(feature), label_column="target").save_to_disk(str(tmp_path / "set"))
    splits = load_data(f"hf:{tmp_path / 'set'}")
    assert splits.class_names == names
    assert sorted({splits.train[index][1] for index in range(len(splits.train))}) == [0, 1]
    assert splits.calibration[0][1] == names.index(str(labels[0]))


def test_a_split_without_labels_is_refused(tmp_path):
    saved = datasets.DatasetDict(
        train=table([0, 1], label_feature=class_label()), test=table([-1, -1], label_feature=class_label())
    )
    saved.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"split test: holds labels that are no class .*\(-1\)"):
        load_data(f"hf:{tmp_path / 'set'}")


def test_unclear_columns_are_listed(tmp_path):
    datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 1]}).save_to_disk(str(tmp_path / "no-pictures"))
    with pytest.raises(DataError, match="0 columns of pictures among x, label"):
        load_data(f"hf:{tmp_path / 'no-pictures'}")
    table([0, 1], label_feature=datasets.Value("int64"), label_column="mood").save_to_disk(str(tmp_path / "no-labels"))
    with pytest.raises(DataError, match="no clear column of labels among image, mood"):
        load_data(f"hf:{tmp_path / 'no-labels'}")


def test_a_broken_picture_is_named_by_its_row(tmp_path):
    good = {"bytes": (tmp_path / "p.png"), "path": None}
    pictures(1)[0].save(good["bytes"])
    content = good["bytes"].read_bytes()
    rows = [{"bytes": content, "path": None}] * 39 + [{"bytes": b"no picture", "path": None}]
    features = datasets.Features({"image": datasets.Image(), "label": class_label()})
    broken = datasets.Dataset.from_dict({"image": rows, "label": [0, 1] * 20}, features=features)
    broken = datasets.concatenate_datasets([broken, broken.select(range(39))])
    datasets.DatasetDict(train=broken, test=broken.select([0, 1])).save_to_disk(str(tmp_path / "set"))
    splits = load_data(f"hf:{tmp_path / 'set'}")
    with pytest.raises(DataError, match="split train, row 39: is not a readable picture"):
        splits.calibration[39]


def test_a_folder_that_is_no_set_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        load_data(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_the_absent_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'prune2deploy\[huggingface\]'"):
        load_data("hf:some/name")
