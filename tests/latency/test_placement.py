"""Surfaces of synthetic engines: found to within a few per cent, with few points."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pytest

from prune2deploy.budget.alignment import MINIMUM_GRANULES
from prune2deploy.budget.surface import Surface
from prune2deploy.graph.unit import Operator, Unit
from prune2deploy.latency.placement import MOST_POINTS, NARROW_GRANULES, Placement, Widths, multiples_of
from prune2deploy.latency.points import Timing

GRANULE = 16
ALIGNED = [(64, 256), (512, 2048), (1024,), (72, 72)]
NARROW = [(24, 144), (48,), (40,), (63,), (10, 240), (26,), (5,)]

Cost = Callable[..., float]


def tiles(width: int, tile: int) -> int:
    return -(-width // tile) * tile


def bilinear(*widths: int) -> float:
    return 2000 + 300 * sum(widths) + 50 * float(np.prod(widths))


def tiled(tile: int) -> Cost:
    return lambda *widths: 1000 + 200 * float(np.prod([tiles(width, tile) for width in widths]))


def slow_off_four(*widths: int) -> float:
    return tiled(16)(*widths) * (2.5 if any(width % 4 for width in widths) else 1)


def allowed(width: int) -> list[int]:
    if width < NARROW_GRANULES * GRANULE:
        return list(range(1, width + 1))
    return sorted({*range(GRANULE, width + 1, GRANULE), width})


def explored(
    widest: Widths,
    cost: Cost,
    *,
    noise: float = 0.0,
    share: float = 1.0,
    multiples: Widths = (),
    disturbed: Mapping[Widths, float] = MappingProxyType({}),
) -> tuple[Surface, dict[Widths, Timing], int]:
    """The surface, what was measured for it, and in how many rounds. The first timings of some are ``disturbed``."""
    placement = Placement(widest=widest, granule=GRANULE, share=share, multiples=multiples)
    chance = np.random.default_rng(0)
    known: dict[Widths, Timing] = {}
    rounds = 0
    while wanted := placement.wanted(known):
        assert known.keys().isdisjoint(wanted)
        rounds += 1
        for widths in wanted:
            latency = cost(*widths) * (1 + noise * chance.standard_normal()) * disturbed.get(widths, 1.0)
            known[widths] = Timing(latency_ns=latency, spread_ns=noise * latency, runs=5)
        for widths in placement.doubted(known):
            latency = cost(*widths) * (1 + noise * chance.standard_normal())
            again = Timing(latency_ns=latency, spread_ns=noise * latency, runs=5)
            known[widths] = known[widths].with_another(again)
    return placement.surface(known), known, rounds


def errors(surface: Surface, cost: Cost, widest: Sequence[int]) -> list[float]:
    """Relative errors at everything that a plan may ask for."""
    points = itertools.product(*(allowed(width) for width in widest))
    return [abs(float(surface.at(*widths)) / cost(*widths) - 1) for widths in points]


def test_narrow_means_here_what_it_means_to_the_budget():
    assert NARROW_GRANULES == MINIMUM_GRANULES


@pytest.mark.parametrize("widest", ALIGNED)
@pytest.mark.parametrize("cost", [bilinear, tiled(16), slow_off_four])
def test_a_cost_that_is_smooth_at_multiples_of_the_granule_is_found_exactly_and_at_once(widest, cost):
    surface, known, rounds = explored(widest, cost)
    assert max(errors(surface, cost, widest)) < 0.03
    assert len(known) <= 13
    assert rounds <= 3


@pytest.mark.parametrize("widest", NARROW)
@pytest.mark.parametrize("cost", [bilinear, tiled(16)])
def test_a_narrow_axis_is_found_at_every_width(widest, cost):
    surface, known, _ = explored(widest, cost)
    found = errors(surface, cost, widest)
    assert np.median(found) < 0.02
    assert np.quantile(found, 0.95) < 0.08
    assert len(known) <= MOST_POINTS


def test_the_steps_of_a_staircase_are_found():
    surface, _, _ = explored((48,), tiled(16))
    assert float(surface.at(16)) == pytest.approx(tiled(16)(16))
    for step in (17, 33):
        assert float(surface.at(step)) == pytest.approx(tiled(16)(step), rel=0.06)
        assert float(surface.at(step)) > 1.3 * float(surface.at(step - 1))


def test_kernels_that_take_only_multiples_of_four_are_seen():
    surface, _, _ = explored((48,), slow_off_four)
    for width in (20, 28, 40):
        assert float(surface.at(width)) == pytest.approx(slow_off_four(width), rel=0.05)
        assert float(surface.at(width + 1)) == pytest.approx(slow_off_four(width + 1), rel=0.12)


def test_a_slow_kernel_for_either_width_is_not_charged_for_both():
    surface, _, _ = explored((32, 16), slow_off_four)
    assert float(surface.at(31, 15)) == pytest.approx(slow_off_four(31, 15), rel=0.15)


def test_wide_tiles_are_found_though_the_coarse_points_lie_on_their_borders():
    surface, known, rounds = explored((1024,), tiled(64))
    assert rounds > 1
    assert np.quantile(errors(surface, tiled(64), (1024,)), 0.95) < 0.1
    assert len(known) <= MOST_POINTS


@pytest.mark.parametrize("widest", [*ALIGNED, (48,), (26,)])
def test_noise_costs_few_points_and_stays_of_its_size(widest):
    quiet, noisy = explored(widest, bilinear), explored(widest, bilinear, noise=0.02)
    assert len(noisy[1]) <= len(quiet[1]) + 6
    assert np.quantile(errors(noisy[0], bilinear, widest), 0.95) < 0.08


@pytest.mark.parametrize("widest", [*ALIGNED, *NARROW])
def test_measured_widths_are_those_that_plans_can_take(widest):
    _, known, _ = explored(widest, tiled(64))
    assert all(width in allowed(full) for point in known for width, full in zip(point, widest, strict=True))
    assert widest in known


def test_the_dense_layer_costs_what_was_measured():
    for widest in [(64, 256), (26, 104), (24, 40), (26,), (7,)]:
        surface, known, _ = explored(widest, slow_off_four, noise=0.05)
        assert float(surface.at(*widest)) == pytest.approx(known[widest].latency_ns)


def test_what_hardly_matters_is_hardly_measured():
    points = [len(explored((512, 512), tiled(64), share=share)[1]) for share in (0.2, 0.004, 0.0005)]
    assert points == sorted(points, reverse=True)
    assert points[0] == MOST_POINTS
    assert points[-1] == 4


def test_a_unit_without_widths_is_measured_once():
    surface, known, _ = explored((), lambda: 1234.0)
    assert list(known) == [()]
    assert float(surface.at()) == 1234.0


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 15, 16, 17])
def test_the_narrowest_axes_have_a_surface(width):
    surface, _, _ = explored((width, 128), bilinear)
    assert np.quantile(errors(surface, bilinear, (width, 128)), 0.95) < 0.1


@pytest.mark.parametrize(
    ("widest", "multiples"),
    [((48,), (8,)), ((104, 208), (8, 8)), ((440,), (8,)), ((60, 60), (12, 12)), ((54,), (6,)), ((24,), (24,))],
)
@pytest.mark.parametrize("cost", [bilinear, tiled(16)])
def test_channels_in_groups_are_measured_at_whole_groups(widest, multiples, cost):
    surface, known, _ = explored(widest, cost, multiples=multiples)
    assert all(width % multiple == 0 for point in known for width, multiple in zip(point, multiples, strict=True))
    for part in (0.3, 0.6, 1.0):
        widths = [max(1, round(part * full / one)) * one for full, one in zip(widest, multiples, strict=True)]
        # A multiple of the groups that is none of the granule may lie anywhere within a tile.
        assert float(surface.at(*widths)) == pytest.approx(cost(*widths), rel=0.15)


def convolution(shape: tuple[int, ...], **attributes: object) -> Unit:
    own = tuple(sorted({"kernel": (3, 3), **attributes}.items()))
    return Unit(
        axes=len({size for size in (-1, shape[1]) if size < 0}),
        inputs=((1, -1, 8, 8),),
        operators=(Operator(name="conv2d", reads=(0,), shape=shape, attributes=own),),
    )


def test_groups_say_what_widths_are_multiples_of():
    assert multiples_of(convolution((1, -2, 8, 8), groups=1)) == (1, 1)
    assert multiples_of(convolution((1, -2, 8, 8), groups=4)) == (4, 4)
    assert multiples_of(convolution((1, -1, 8, 8), channels_per_group=8, outputs_per_group=8)) == (8,)
    assert multiples_of(convolution((1, 10, 8, 8), groups=2)) == (2,)
    norm = Operator(name="group_norm", reads=(0,), shape=(1, -1, 8, 8), attributes=(("affine", True), ("groups", 32)))
    assert multiples_of(Unit(axes=1, inputs=((1, -1, 8, 8),), operators=(norm,))) == (32,)


@pytest.mark.parametrize(("widest", "factor"), [((64, 256), 1.4), ((512, 512), 1.4), ((512, 512), 5.0), ((48,), 5.0)])
@pytest.mark.parametrize("part", [1.0, 0.5, 0.25])
def test_a_point_that_was_disturbed_when_it_was_timed_is_found_out(widest, part, factor):
    where = tuple(round(part * full / 16) * 16 for full in widest)
    surface, known, _ = explored(widest, tiled(16), disturbed={where: factor})
    if where in known:
        assert known[where].latency_ns == pytest.approx(tiled(16)(*where))
    assert np.quantile(errors(surface, tiled(16), widest), 0.95) < 0.03


def test_full_widths_are_timed_twice_and_nothing_for_ever():
    _, known, _ = explored((64, 256), tiled(16))
    assert known[64, 256].times == 2
    assert sum(timing.times for timing in known.values()) <= len(known) + 2
    placement = Placement(widest=(64, 256), granule=GRANULE)
    unsteady = {point: Timing(latency_ns=9.0, spread_ns=5.0, runs=1, times=5) for point in known}
    assert placement.doubted(unsteady) == ()


def test_what_was_measured_is_all_that_a_later_run_needs():
    for cost in (bilinear, tiled(64), slow_off_four):
        for widest in [(64, 256), (48,), (24, 144)]:
            _, known, _ = explored(widest, cost, noise=0.02)
            placement = Placement(widest=widest, granule=GRANULE)
            assert placement.wanted(known) == placement.doubted(known) == ()
