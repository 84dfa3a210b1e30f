"""The table of a network, filled by an engine that is a formula."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from prune2deploy.errors import EngineError, StorageError
from prune2deploy.graph.unit import Operator, Unit
from prune2deploy.latency import table
from prune2deploy.latency.placement import Widths
from prune2deploy.latency.points import Point, Timing
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.store import LatencyStore
from prune2deploy.latency.table import POINTS_AT_ONCE, measured_surfaces

SETTING = Setting(engine="ort-cpu")


def conv(size: int) -> Unit:
    shape = (1, -2, size, size)
    return Unit(axes=2, inputs=((1, -1, size, size),), operators=(Operator(name="conv2d", reads=(0,), shape=shape),))


RELU = Unit(axes=1, inputs=((1, -1, 4, 4),), operators=(Operator(name="relu", reads=(0,), shape=(1, -1, 4, 4)),))
SOFTMAX = Unit(axes=0, inputs=((1, 10),), operators=(Operator(name="softmax", reads=(0,), shape=(1, 10)),))
WIDEST: dict[Unit, Widths] = {conv(56): (64, 256), conv(28): (512, 128), RELU: (256,), SOFTMAX: ()}


def cost(point: Point) -> float:
    """Products of widths and pixels, in tiles of 32."""
    size = point.unit.inputs[0][-1]
    widths = [-(-width // 32) * 32 for width in point.widths]
    return 500 + (size * size * float(np.prod(widths)) / 10 if widths else 0)


class Formula:
    """A prober that counts what it is asked; ``stop_after`` points it is interrupted."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[Point] = []
        self.stop_after = stop_after

    def time(self, points: Sequence[Point], *, tell: Callable[[int], None]) -> tuple[Timing, ...]:
        if self.stop_after is not None and len(self.asked) + len(points) > self.stop_after:
            raise KeyboardInterrupt
        self.asked += points
        for _ in points:
            tell(1)
        return tuple(Timing(latency_ns=cost(point), spread_ns=cost(point) / 100, runs=3) for point in points)


class Watcher:
    """A progress that notes what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[list[float]] = []

    def task(self, description: str, *, total: float | None = None) -> "Watcher":
        assert total is not None
        self.tasks.append([total, 0.0])
        return self

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *error: object) -> None:
        """Stay open for the next one."""

    def advance(self, steps: float = 1) -> None:
        self.tasks[-1][1] += steps

    def describe(self, text: str) -> None:
        raise AssertionError(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def store(tmp_path):
    return LatencyStore(tmp_path / "measured.sqlite3")


def test_every_unit_has_a_surface_that_is_right_at_its_widths(store):
    found = measured_surfaces(WIDEST, SETTING, granule=16, prober=Formula(), store=store)
    assert set(found.surfaces) == set(WIDEST)
    for unit, widest in WIDEST.items():
        assert float(found.surfaces[unit].at(*widest)) == pytest.approx(cost(Point(unit, widest)))
    assert float(found.surfaces[conv(56)].at(32, 128)) == pytest.approx(cost(Point(conv(56), (32, 128))), rel=0.03)
    assert found.spread == pytest.approx(0.01)
    assert found.seconds > 0


def test_what_was_measured_is_not_measured_again(store):
    first = Formula()
    before = measured_surfaces(WIDEST, SETTING, granule=16, prober=first, store=store)
    again = Formula()
    after = measured_surfaces(WIDEST, SETTING, granule=16, prober=again, store=store)
    assert len(set(first.asked)) == before.measured == after.reused
    assert (again.asked, after.measured, before.reused) == ([], 0, 0)
    for unit, surface in before.surfaces.items():
        assert surface.axes == after.surfaces[unit].axes
        np.testing.assert_array_equal(surface.values, after.surfaces[unit].values)


def test_another_network_uses_what_it_shares(store):
    measured_surfaces({RELU: (256,), SOFTMAX: ()}, SETTING, granule=16, prober=Formula(), store=store)
    prober = Formula()
    found = measured_surfaces(WIDEST, SETTING, granule=16, prober=prober, store=store)
    assert found.reused > 0
    assert {point.unit for point in prober.asked} == {conv(56), conv(28)}


def test_another_setting_has_measurements_of_its_own(store):
    measured_surfaces(WIDEST, SETTING, granule=16, prober=Formula(), store=store)
    for other in (Setting(engine="ort-cpu", batch=8), Setting(engine="ort-cpu", precision="fp16")):
        prober = Formula()
        found = measured_surfaces(WIDEST, other, granule=16, prober=prober, store=store)
        assert found.reused == 0
        assert len(set(prober.asked)) == found.measured


def test_an_interrupted_run_goes_on_where_it_was(store, monkeypatch):
    monkeypatch.setattr(table, "POINTS_AT_ONCE", 4)
    whole = Formula()
    expected = measured_surfaces(
        WIDEST, SETTING, granule=16, prober=whole, store=LatencyStore(store.path.with_name("b"))
    )
    stopped = Formula(stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        measured_surfaces(WIDEST, SETTING, granule=16, prober=stopped, store=store)
    assert 16 < len(stopped.asked) <= 20
    rest = Formula()
    found = measured_surfaces(WIDEST, SETTING, granule=16, prober=rest, store=store)
    assert found.reused == len(set(stopped.asked))
    assert sorted(map(str, stopped.asked + rest.asked)) == sorted(map(str, whole.asked))
    for unit, surface in expected.surfaces.items():
        np.testing.assert_array_equal(surface.values, found.surfaces[unit].values)


def test_units_that_occur_often_are_measured_more_finely(store, tmp_path):
    many = {conv(size): (256, 256) for size in range(8, 40)}
    often = conv(8)
    plain = measured_surfaces(many, SETTING, granule=16, prober=Formula(), store=store)
    weighted = measured_surfaces(many, SETTING, granule=16, prober=Formula(), store=store, weights={often: 10_000})
    assert len(weighted.timings[often]) > len(plain.timings[often])
    assert len(weighted.timings[conv(20)]) <= len(plain.timings[conv(20)])


def test_progress_tells_of_every_point_round_by_round(store):
    watcher = Watcher()
    found = measured_surfaces(WIDEST, SETTING, granule=16, prober=Formula(), store=store, progress=watcher)
    assert all(total == done for total, done in watcher.tasks)
    assert sum(total for total, _ in watcher.tasks) >= found.measured
    assert watcher.tasks[0][0] == len(WIDEST)
    again = Watcher()
    measured_surfaces(WIDEST, SETTING, granule=16, prober=Formula(), store=store, progress=again)
    assert again.tasks == []


def test_no_batch_of_points_is_larger_than_what_may_be_lost(store):
    sizes: list[int] = []

    class Counting(Formula):
        def time(self, points: Sequence[Point], *, tell: Callable[[int], None]) -> tuple[Timing, ...]:
            sizes.append(len(points))
            return super().time(points, tell=tell)

    many = {conv(size): (256, 256) for size in range(8, 40)}
    measured_surfaces(many, SETTING, granule=16, prober=Counting(), store=store)
    assert max(sizes) == POINTS_AT_ONCE


@pytest.mark.parametrize("method", ["find", "add"])
def test_a_store_that_fails_costs_only_a_remark(store, monkeypatch, method):
    def fail(*arguments: object) -> None:
        raise StorageError("latencies cannot be kept (no space)", where="measured.sqlite3")

    monkeypatch.setattr(store, method, fail)
    watcher = Watcher()
    found = measured_surfaces(WIDEST, SETTING, granule=16, prober=Formula(), store=store, progress=watcher)
    assert set(found.surfaces) == set(WIDEST)
    assert watcher.notes == [
        "measured.sqlite3: latencies cannot be kept (no space): what is measured serves this run alone"
    ]


def test_the_engine_is_started_only_if_something_is_missing(store, monkeypatch):
    measured_surfaces(WIDEST, SETTING, granule=16, prober=Formula(), store=store)

    def refuse(setting: Setting) -> None:
        raise EngineError("was started", where=setting.engine)

    monkeypatch.setattr(table, "EngineProber", refuse)
    assert measured_surfaces(WIDEST, SETTING, granule=16, store=store).measured == 0
    with pytest.raises(EngineError, match="was started"):
        measured_surfaces(WIDEST, SETTING, granule=32, store=store)


def test_a_network_of_no_units_has_an_empty_table(store):
    found = measured_surfaces({}, SETTING, granule=16, prober=Formula(), store=store)
    assert (found.surfaces, found.measured, found.spread) == ({}, 0, 0.0)


def test_timings_that_stay_unsteady_are_told(store):
    class Restless(Formula):
        def time(self, points: Sequence[Point], *, tell: Callable[[int], None]) -> tuple[Timing, ...]:
            steady = super().time(points, tell=tell)
            factor = 1 + len(self.asked) % 7
            return tuple(Timing(latency_ns=one.latency_ns * factor, spread_ns=one.spread_ns, runs=3) for one in steady)

    watcher = Watcher()
    prober = Restless()
    measured_surfaces({RELU: (256,)}, SETTING, granule=16, prober=prober, store=store, progress=watcher)
    assert max(prober.asked.count(point) for point in prober.asked) <= 5
    quiet = Watcher()
    again = LatencyStore(store.path.with_name("again"))
    measured_surfaces({RELU: (256,)}, SETTING, granule=16, prober=Formula(), store=again, progress=quiet)
    assert quiet.notes == []
    noisy = Timing(latency_ns=100.0, spread_ns=50.0, runs=3, times=5)
    points = {row.point: noisy for row in again.measurements()}
    again.add(again.measurements()[0].environment, 1, points)
    measured_surfaces({RELU: (256,)}, SETTING, granule=16, prober=Formula(), store=again, progress=quiet)
    assert len(quiet.notes) == 1
    assert quiet.notes[0].startswith("timings of relu, 4x4 were not steady")
