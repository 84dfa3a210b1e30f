"""The generated textures: the same for everybody, balanced, and of a class that no single grating gives away."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prune2deploy.data import textures as module
from prune2deploy.data.load import load_data
from prune2deploy.data.textures import ORIENTATIONS, SIDE, drawn_images
from prune2deploy.errors import DataError


def everything(samples):
    return next(iter(DataLoader(samples, batch_size=len(samples))))


@pytest.fixture(scope="module")
def splits():
    return load_data("textures")


def test_the_sizes_and_shapes_are_the_documented_ones(splits):
    assert (len(splits.train), len(splits.calibration), len(splits.evaluation)) == (4000, 4000, 2000)
    assert splits.input_shape == (1, 16, 16)
    assert splits.class_count == 10
    image, label = splits.train[0]
    assert image.shape == (1, 16, 16)
    assert type(label) is int


def test_classes_are_equally_frequent_in_both_splits(splits):
    assert np.bincount(everything(splits.train)[1]).tolist() == [400] * 10
    assert np.bincount(everything(splits.evaluation)[1]).tolist() == [200] * 10


def test_the_images_are_always_the_same_and_leave_all_generators_alone(splits):
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = load_data("textures")
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])
    for one, other in ((splits.train, again.train), (splits.evaluation, again.evaluation)):
        assert torch.equal(everything(one)[0], everything(other)[0])
        assert torch.equal(everything(one)[1], everything(other)[1])


def test_no_image_of_one_split_is_in_the_other(splits):
    seen = {image.numpy().tobytes() for image in everything(splits.train)[0]}
    assert len(seen) == 4000
    assert not seen & {image.numpy().tobytes() for image in everything(splits.evaluation)[0]}


def test_images_are_normalised_by_the_recorded_constants(splits):
    images, _ = everything(splits.train)
    assert images.mean().item() == pytest.approx(0, abs=0.01)
    assert images.std().item() == pytest.approx(1, abs=0.01)


def clean(monkeypatch, count):
    """Images without what is random beside phases, frequencies and contrasts."""
    monkeypatch.setattr(module, "_NOISE", 0.0)
    monkeypatch.setattr(module, "_ANGLE_DEVIATION", 0.0)
    monkeypatch.setattr(module, "_WINDOW", (100.0, 100.0))
    return drawn_images(count, np.random.RandomState(0))


def orientation(image, low, high):
    """The orientation number of the strongest wave whose cycles lie in a band, from a fine Fourier transform."""
    cycles = np.arange(-8, 8, 0.25)
    down, across = np.meshgrid(cycles, cycles, indexing="ij")
    place = (np.arange(SIDE) + 0.5) / SIDE
    waves = np.exp(-2j * np.pi * cycles[:, None] * place)
    taper = np.hanning(SIDE + 2)[1:-1]
    power = np.abs(waves @ ((image - 0.5) * taper * taper[:, None]) @ waves.T)
    radius = np.hypot(down, across)
    power[(radius < low) | (radius > high)] = 0
    row, column = np.unravel_index(power.argmax(), power.shape)
    angle = np.arctan2(cycles[row], cycles[column])
    return round(angle * ORIENTATIONS / np.pi) % ORIENTATIONS


def test_the_class_is_the_sum_of_the_two_orientations(monkeypatch):
    """Read back from the images by a Fourier transform: both orientations, and their sum modulo ten."""
    images, labels = clean(monkeypatch, 100)
    found = [(orientation(image, 1.2, 3.3) + orientation(image, 3.7, 6.0)) % ORIENTATIONS for image in images]
    assert np.mean(np.array(found) == labels) > 0.8


def test_neither_orientation_alone_says_anything_of_the_class(monkeypatch):
    """Every class holds each pair of orientations that adds up to it, equally often."""
    images, labels = clean(monkeypatch, 400)
    coarse = np.array([orientation(image, 1.2, 3.3) for image in images])
    agreement = [np.mean(labels[coarse == number] == label) for number in range(10) for label in range(10)]
    assert max(agreement) < 0.3


def test_a_straight_line_through_the_pixels_does_not_tell_the_classes(splits):
    images, labels = everything(splits.train)
    flat = torch.cat([images.flatten(1), torch.ones(4000, 1)], dim=1).double()
    targets = torch.nn.functional.one_hot(labels, 10).double()
    weights = torch.linalg.lstsq(flat, targets).solution
    others, answers = everything(splits.evaluation)
    scores = torch.cat([others.flatten(1), torch.ones(2000, 1)], dim=1).double() @ weights
    assert (scores.argmax(dim=1) == answers).double().mean() < 0.16


def test_textures_are_brought_to_other_shapes_and_refuse_impossible_ones():
    splits = load_data("textures", input_shape=(3, 32, 32), augment=False)
    assert splits.evaluation[0][0].shape == (3, 32, 32)
    with pytest.raises(DataError, match="1 or 3 channels"):
        load_data("textures", input_shape=(2, 16, 16))
