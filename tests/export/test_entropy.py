"""Ranges by entropy: outliers are cut, the bulk is not, and the zeros of rectifiers do not count."""

import numpy as np
import pytest

from prune2deploy.export.int8.entropy import entropy_threshold


def histogram(values: np.ndarray, bins: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    return np.histogram(np.abs(values), bins, range=(0.0, np.abs(values).max()))


def noise_db(values: np.ndarray, kept: float) -> float:
    """Signal to quantisation noise of int8 with the range ±kept, in dB."""
    step = kept / 127
    rounded = np.clip(np.round(values / step), -127, 127) * step
    return 10 * np.log10(np.square(values).sum() / np.square(values - rounded).sum())


def test_a_lone_outlier_is_cut_and_the_bulk_is_kept():
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 60.0)
    kept = entropy_threshold(*histogram(values))
    assert 3.0 < kept < 15.0
    assert noise_db(values[:-1], kept) > noise_db(values[:-1], 60.0) + 10


@pytest.mark.parametrize("draw", ["standard_normal", "standard_laplace"])
def test_zeros_of_a_rectifier_do_not_narrow_the_range(draw: str):
    rng = np.random.default_rng(1)
    values = np.abs(rng.laplace(size=50_000) if draw == "standard_laplace" else rng.standard_normal(50_000))
    with_zeros = np.concatenate([values, np.zeros(200_000)])
    assert entropy_threshold(*histogram(with_zeros)) == entropy_threshold(*histogram(values))


def test_values_with_a_tail_come_out_with_less_noise_than_from_the_largest_value():
    values = np.random.default_rng(2).laplace(size=200_000)
    assert noise_db(values, entropy_threshold(*histogram(values))) > noise_db(values, np.abs(values).max()) + 1


def test_an_outlier_far_beyond_all_bins_of_the_bulk_is_cut():
    values = np.append(np.random.default_rng(4).standard_normal(10_000), 1000.0)
    assert entropy_threshold(*histogram(values)) < 100


@pytest.mark.parametrize("counts", [np.zeros(512, dtype=np.int64), np.eye(1, 512, dtype=np.int64)[0]])
def test_a_histogram_with_nothing_but_zeros_keeps_its_range(counts: np.ndarray):
    edges = np.linspace(0, 1, 513)
    assert entropy_threshold(counts, edges) == 1.0


def test_as_few_bins_as_levels_leave_nothing_to_choose():
    counts, edges = histogram(np.random.default_rng(3).standard_normal(1000), bins=128)
    assert entropy_threshold(counts, edges) == pytest.approx(edges[-1])


def test_values_of_few_sizes_are_not_cut_to_the_smallest():
    values = np.random.default_rng(5).integers(0, 17, 20_000) / 16
    assert entropy_threshold(*histogram(values)) > 0.99
