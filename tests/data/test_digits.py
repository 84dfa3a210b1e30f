import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from prune2deploy.data.load import load_data
from prune2deploy.data.splits import Normalization, check_fits
from prune2deploy.errors import DataError


def everything(samples):
    images, labels = next(iter(DataLoader(samples, batch_size=len(samples))))
    return images, labels


def test_the_split_has_fifty_digits_of_each_class_to_evaluate_on():
    splits = load_data("digits")
    assert (len(splits.train), len(splits.calibration), len(splits.evaluation)) == (1297, 1297, 500)
    assert np.bincount(everything(splits.evaluation)[1]).tolist() == [50] * 10
    assert splits.class_count == 10
    assert splits.input_shape == (1, 8, 8)


def test_no_digit_is_in_both_splits_and_none_is_lost():
    splits = load_data("digits")
    both = torch.cat([everything(splits.calibration)[0], everything(splits.evaluation)[0]])
    raw = (both * splits.normalization.std[0] + splits.normalization.mean[0]) * 16
    ours = sorted(raw.round().to(torch.int64).flatten(1).tolist())
    assert ours == sorted(load_digits().data.astype(int).tolist())


def test_the_split_is_always_the_same():
    torch.manual_seed(0)
    np.random.seed(0)
    first = everything(load_data("digits").evaluation)
    torch.manual_seed(1)
    np.random.seed(1)
    second = everything(load_data("digits").evaluation)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_samples_are_normalised_with_the_recorded_constants():
    images, _ = everything(load_data("digits").calibration)
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_one_sample_is_an_image_and_a_plain_integer():
    splits = load_data("digits")
    image, label = splits.evaluation[-1]
    assert image.shape == (1, 8, 8)
    assert type(label) is int
    assert torch.equal(image, splits.evaluation[499][0])
    with pytest.raises(IndexError):
        splits.evaluation[500]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 12, 20), (3, 8, 8), (1, 4, 4)])
def test_digits_are_resized_and_their_channel_repeated(shape):
    splits = load_data("digits", input_shape=shape)
    images, _ = next(iter(DataLoader(splits.train, batch_size=16)))
    assert images.shape == (16, *shape)
    assert splits.input_shape == shape
    assert all(torch.equal(images[:, 0], images[:, channel]) for channel in range(shape[0]))
    assert len(splits.normalization.mean) == shape[0]


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (1, 0, 8)])
def test_shapes_that_no_picture_has_are_refused(shape):
    with pytest.raises(DataError, match="1 or 3 channels"):
        load_data("digits", input_shape=shape)


def test_augmentation_shifts_by_up_to_one_pixel_and_never_mirrors():
    splits = load_data("digits")
    original = splits.calibration[7][0]
    background = splits.calibration[7][0].min()
    framed = torch.nn.functional.pad(original, (1, 1, 1, 1), value=background.item())
    allowed = {
        framed[:, row : row + 8, column : column + 8].numpy().round(4).tobytes()
        for row in range(3)
        for column in range(3)
    }
    torch.manual_seed(0)
    seen = {splits.train[7][0].numpy().round(4).tobytes() for _ in range(200)}
    assert seen == allowed


def test_augmentation_is_drawn_from_torchs_generator_alone():
    splits = load_data("digits")

    def epoch():
        return torch.cat([images for images, _ in DataLoader(splits.train, batch_size=128, shuffle=True)])

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = epoch()
    second = epoch()
    torch.set_rng_state(state)
    assert torch.equal(epoch(), first)
    assert not torch.equal(first, second)


def test_without_augmentation_training_samples_are_the_calibration_samples():
    splits = load_data("digits", augment=False)
    assert torch.equal(everything(splits.train)[0], everything(splits.calibration)[0])


def test_samples_read_the_same_after_pickling_and_in_a_worker():
    splits = load_data("digits")
    copy = pickle.loads(pickle.dumps(splits.evaluation))
    assert torch.equal(copy[3][0], splits.evaluation[3][0])
    worked = torch.cat([images for images, _ in DataLoader(splits.evaluation, batch_size=250, num_workers=1)])
    assert torch.equal(worked, everything(splits.evaluation)[0])


def test_other_normalization_constants_can_be_asked_for():
    splits = load_data("digits", input_shape=(3, 8, 8), normalization=Normalization(mean=(0.5,) * 3, std=(0.5,) * 3))
    images, _ = everything(splits.evaluation)
    assert images.min() == -1
    assert images.max() == 1


@pytest.mark.parametrize(("mean", "std"), [((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
def test_impossible_normalization_is_refused(mean, std):
    with pytest.raises(DataError, match="not possible"):
        Normalization(mean=mean, std=std)


def test_a_model_with_another_number_of_outputs_does_not_fit():
    splits = load_data("digits")
    check_fits(splits, 10)
    with pytest.raises(DataError, match="has 10 classes, but the model has 1000 outputs"):
        check_fits(splits, 1000)
