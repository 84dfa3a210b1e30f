import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from prune2deploy.data.load import load_data
from prune2deploy.data.splits import IMAGENET_NORMALIZATION
from prune2deploy.errors import DataError


def write_pictures(folder, count, *, size=(20, 16), mode="RGB", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), mode=None).save(folder / f"{index}.png")


@pytest.fixture
def split_folder(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for seed, name in enumerate(("cat", "dog")):
            write_pictures(tmp_path / part / name, count, seed=seed)
    return tmp_path


def test_train_and_val_folders_become_the_splits(split_folder):
    splits = load_data(f"imagefolder:{split_folder}", input_shape=(3, 24, 24))
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.calibration), len(splits.evaluation)) == (6, 6, 4)
    assert [splits.evaluation[index][1] for index in range(4)] == [0, 0, 1, 1]
    assert splits.normalization == IMAGENET_NORMALIZATION
    for samples in (splits.train, splits.calibration, splits.evaluation):
        image, label = samples[0]
        assert (image.dtype, tuple(image.shape), type(label)) == (torch.float32, (3, 24, 24), int)


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_other_names_of_the_evaluation_folder_are_known(split_folder, name):
    (split_folder / "val").rename(split_folder / name)
    assert len(load_data(f"imagefolder:{split_folder}").evaluation) == 4


def test_pictures_of_one_size_keep_it_by_default_and_are_used_whole(split_folder):
    splits = load_data(f"imagefolder:{split_folder}")
    assert splits.input_shape == (3, 16, 20)
    image, _ = splits.evaluation[0]
    pixels = torch.from_numpy(np.asarray(Image.open(split_folder / "val" / "cat" / "0.png")).copy()).permute(2, 0, 1)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (splits.normalization.mean, splits.normalization.std)
    )
    torch.testing.assert_close(image * std + mean, pixels / 255)


def test_pictures_of_different_sizes_become_224_by_224(split_folder):
    write_pictures(split_folder / "train" / "cat", 1, size=(30, 30))
    assert load_data(f"imagefolder:{split_folder}").input_shape == (3, 224, 224)


def test_grey_pictures_have_one_channel_unless_three_are_asked_for(tmp_path):
    for name in ("a", "b"):
        write_pictures(tmp_path / name, 3, mode="L")
    assert load_data(f"imagefolder:{tmp_path}").input_shape == (1, 16, 20)
    image, _ = load_data(f"imagefolder:{tmp_path}", input_shape=(3, 16, 20)).evaluation[0]
    raw = image * torch.tensor(IMAGENET_NORMALIZATION.std)[:, None, None]
    raw = raw + torch.tensor(IMAGENET_NORMALIZATION.mean)[:, None, None]
    torch.testing.assert_close(raw[0], raw[2])


def test_evaluation_takes_the_centre_of_a_slightly_larger_picture(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            pixels = np.zeros((256, 256, 3), dtype=np.uint8)
            pixels[16:240, 16:240] = 255
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    image, _ = load_data(f"imagefolder:{tmp_path}", input_shape=(3, 224, 224)).evaluation[0]
    assert image.min() > 0


def test_a_single_folder_is_split_by_class_always_alike(tmp_path):
    write_pictures(tmp_path / "a", 10)
    write_pictures(tmp_path / "b", 5)
    write_pictures(tmp_path / ".hidden", 1)
    first, second = (load_data(f"imagefolder:{tmp_path}") for _ in range(2))
    assert first.class_names == ("a", "b")
    labels = [first.evaluation[index][1] for index in range(len(first.evaluation))]
    assert labels == [0, 0, 1]
    assert len(first.train) == 12
    assert all(torch.equal(first.evaluation[i][0], second.evaluation[i][0]) for i in range(3))


def test_a_class_called_train_is_a_class(tmp_path):
    for name in ("train", "car"):
        write_pictures(tmp_path / name, 3)
    assert load_data(f"imagefolder:{tmp_path}").class_names == ("car", "train")


def test_augmentation_differs_each_time_and_repeats_with_torchs_generator(split_folder):
    for shape in ((3, 16, 20), (3, 64, 48)):
        samples = load_data(f"imagefolder:{split_folder}", input_shape=shape).train
        torch.manual_seed(0)
        first = torch.stack([samples[0][0] for _ in range(4)])
        second = torch.stack([samples[0][0] for _ in range(4)])
        torch.manual_seed(0)
        assert torch.equal(torch.stack([samples[0][0] for _ in range(4)]), first)
        assert not torch.equal(first, second)


def test_without_augmentation_training_reads_like_calibration(split_folder):
    splits = load_data(f"imagefolder:{split_folder}", input_shape=(3, 12, 12), augment=False)
    assert torch.equal(splits.train[1][0], splits.calibration[1][0])


def test_samples_can_be_read_by_workers(split_folder):
    splits = load_data(f"imagefolder:{split_folder}")
    assert torch.equal(pickle.loads(pickle.dumps(splits.evaluation))[0][0], splits.evaluation[0][0])
    images, _ = next(iter(DataLoader(splits.evaluation, batch_size=4, num_workers=1)))
    assert torch.equal(images[3], splits.evaluation[3][0])


def damage(path, how):
    if how == "text":
        path.write_text("this is no picture")
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["text", "empty"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_file_that_is_no_picture_is_named_before_training(split_folder, how, part):
    damage(split_folder / part / "dog" / "1.png", how)
    with pytest.raises(DataError, match=r"dog.1\.png: is not a readable picture") as caught:
        load_data(f"imagefolder:{split_folder}")
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_is_named_when_it_is_read(split_folder):
    for name in ("cat", "dog"):
        write_pictures(split_folder / "train" / name, 20)
    splits = load_data(f"imagefolder:{split_folder}", input_shape=(3, 16, 16))
    path = split_folder / "train" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:-200])
    splits.calibration[19]
    with pytest.raises(DataError, match=r"dog.0\.png: is not a readable picture"):
        splits.calibration[20]


def test_a_picture_that_has_gone_is_named(split_folder):
    splits = load_data(f"imagefolder:{split_folder}")
    (split_folder / "val" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"cat.0\.png"):
        splits.evaluation[0]


def test_pictures_of_sixteen_bits_are_refused(split_folder):
    Image.fromarray(np.full((16, 20), 40_000, dtype=np.uint16)).save(split_folder / "val" / "cat" / "0.png")
    with pytest.raises(DataError, match="8 bits"):
        load_data(f"imagefolder:{split_folder}").evaluation[0]


def test_one_class_is_refused(tmp_path):
    write_pictures(tmp_path / "only", 4)
    with pytest.raises(DataError, match="holds 1 class folders, at least two"):
        load_data(f"imagefolder:{tmp_path}")


def test_folders_that_hold_no_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        load_data(f"imagefolder:{tmp_path / 'absent'}")
    with pytest.raises(DataError, match="DIR/train/CLASS"):
        load_data(f"imagefolder:{tmp_path}")


def test_a_class_without_pictures_is_named(split_folder):
    (split_folder / "train" / "emu").mkdir()
    with pytest.raises(DataError, match="emu"):
        load_data(f"imagefolder:{split_folder}")


def test_different_classes_in_evaluation_are_named(split_folder):
    write_pictures(split_folder / "val" / "emu", 1)
    with pytest.raises(DataError, match="train and val hold different classes \\(emu\\)"):
        load_data(f"imagefolder:{split_folder}")


def test_a_class_too_small_to_split_is_refused(tmp_path):
    write_pictures(tmp_path / "a", 4)
    write_pictures(tmp_path / "b", 1)
    with pytest.raises(DataError, match="class number 1 has 1 samples"):
        load_data(f"imagefolder:{tmp_path}")


def test_checking_pictures_reports_progress(split_folder):
    from contextlib import contextmanager

    class Counting:
        def __init__(self):
            self.steps = 0

        @contextmanager
        def task(self, description, *, total=None):
            yield self

        def advance(self, steps=1):
            self.steps += steps

    progress = Counting()
    load_data(f"imagefolder:{split_folder}", progress=progress)
    assert progress.steps == 10
