import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100

from prune2deploy.data.load import load_data
from prune2deploy.errors import DataError

COUNT = 20


def write_batches(folder, kind, monkeypatch):
    """Files in the published format, with their digests in the place of the published ones."""
    labels_key, names_key = ("fine_labels", "fine_label_names") if kind is CIFAR100 else ("labels", "label_names")
    class_count = 100 if kind is CIFAR100 else 10
    base = folder / kind.base_folder
    base.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {}

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    digests = {}
    for name in ("train_part", "test_part"):
        arrays[name] = generator.integers(0, 256, (COUNT, 3 * 32 * 32), dtype=np.uint8)
        labels = [index % class_count for index in range(COUNT)]
        digests[name] = write(name, {"data": arrays[name], labels_key: labels})
    meta = write("meta_part", {names_key: [f"class {number}" for number in range(class_count)]})
    monkeypatch.setattr(kind, "train_list", [["train_part", digests["train_part"]]])
    monkeypatch.setattr(kind, "test_list", [["test_part", digests["test_part"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta_part", "key": names_key, "md5": meta})
    return arrays


@pytest.mark.parametrize(("spec", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_published_files_become_normalised_images(tmp_path, monkeypatch, spec, kind):
    arrays = write_batches(tmp_path, kind, monkeypatch)
    splits = load_data(f"{spec}:{tmp_path}")
    assert splits.input_shape == (3, 32, 32)
    assert splits.class_names[1] == "class 1"
    assert splits.class_count == (100 if kind is CIFAR100 else 10)
    images, labels = next(iter(DataLoader(splits.evaluation, batch_size=COUNT)))
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (splits.normalization.mean, splits.normalization.std)
    )
    restored = (images * std + mean) * 255
    torch.testing.assert_close(
        restored, torch.from_numpy(arrays["test_part"]).reshape(COUNT, 3, 32, 32).float(), atol=1e-2, rtol=0
    )
    assert labels.tolist() == [index % splits.class_count for index in range(COUNT)]


def test_the_inner_folder_may_be_named_too(tmp_path, monkeypatch):
    write_batches(tmp_path, CIFAR10, monkeypatch)
    assert len(load_data(f"cifar10:{tmp_path / CIFAR10.base_folder}").train) == COUNT


def test_augmentation_crops_from_a_black_frame_and_mirrors(tmp_path, monkeypatch):
    write_batches(tmp_path, CIFAR10, monkeypatch)
    splits = load_data(f"cifar10:{tmp_path}")
    original = splits.calibration[0][0]
    black = (0 - torch.tensor(splits.normalization.mean)) / torch.tensor(splits.normalization.std)
    framed = black[:, None, None].repeat(1, 40, 40)
    framed[:, 4:36, 4:36] = original
    crops = {
        (row, column, mirrored): framed[:, row : row + 32, column : column + 32].flip(-1)
        if mirrored
        else framed[:, row : row + 32, column : column + 32]
        for row in range(9)
        for column in range(9)
        for mirrored in (False, True)
    }
    stacked = torch.stack(list(crops.values()))
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        distances = (stacked - splits.train[0][0]).abs().amax(dim=(1, 2, 3))
        assert distances.min() < 1e-5
        seen.add(list(crops)[int(distances.argmin())])
    assert len(seen) > 40
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    assert len({row for row, _, _ in seen}) == 9


def test_one_channel_is_the_brightness_of_three(tmp_path, monkeypatch):
    write_batches(tmp_path, CIFAR10, monkeypatch)
    splits = load_data(f"cifar10:{tmp_path}", input_shape=(1, 16, 16))
    assert splits.evaluation[0][0].shape == (1, 16, 16)
    assert len(splits.normalization.mean) == 1


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match=r"unpack cifar-10-python\.tar\.gz there"):
        load_data(f"cifar10:{tmp_path}")


def test_a_damaged_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    write_batches(tmp_path, CIFAR10, monkeypatch)
    path = tmp_path / CIFAR10.base_folder / "train_part"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="damaged"):
        load_data(f"cifar10:{tmp_path}")
