"""``p2d latency-table`` over a model: its units, what they take, what is kept and exported. The engine is a formula."""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from prune2deploy.engines.registry import best_engine
from prune2deploy.errors import InputError, StorageError
from prune2deploy.graph.unit import Unit
from prune2deploy.latency import table
from prune2deploy.latency.environment import environment_of
from prune2deploy.latency.points import Point, Timing
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.store import LatencyStore
from prune2deploy.pipeline.latency.table import run_latency_table
from prune2deploy.pipeline.requests import LatencyTableRequest


class Formula:
    """An engine that takes 1000 ns for each width product; it counts what it is asked, over all of its lives."""

    asked: ClassVar[list[Point]] = []
    settings: ClassVar[list[Setting]] = []

    def __init__(self, setting: Setting) -> None:
        self.settings.append(setting)

    def __enter__(self) -> "Formula":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def time(self, points: Sequence[Point], *, tell: Callable[[int], None]) -> tuple[Timing, ...]:
        self.asked.extend(points)
        tell(len(points))
        return tuple(Timing(latency_ns=cost(point.widths), spread_ns=10.0, runs=3) for point in points)


def cost(widths: Sequence[int]) -> float:
    product = 1000.0
    for width in widths:
        product *= width
    return product


@pytest.fixture
def engine(monkeypatch, small_model):
    monkeypatch.setattr(table, "EngineProber", Formula)
    monkeypatch.setattr(Formula, "asked", [])
    monkeypatch.setattr(Formula, "settings", [])
    return Formula


@pytest.fixture
def store(tmp_path):
    return LatencyStore(tmp_path / "measured.sqlite3")


def request(**changes: object) -> LatencyTableRequest:
    return LatencyTableRequest(
        **{"subject": "small_blocks:Blocks", "input_shape": (1, 6, 6), "engine": "ort-cpu", "threads": 1, **changes}
    )


def test_units_are_those_of_the_model_and_sum_up_to_it(engine, store):
    found = run_latency_table(request(), store=store).table
    by_words = {row.unit: row for row in found.units}
    repeated = by_words["conv 3x3 + add + relu, 6x6"]
    assert (repeated.times, repeated.widths) == (2, (16, 16))
    assert repeated.layers == ("blocks.0.second", "blocks.1.second")
    assert repeated.latency_ns == pytest.approx(cost((16, 16)))
    assert repeated.half_ns == pytest.approx(cost(repeated.half_widths))
    assert repeated.total_ns == pytest.approx(2 * repeated.latency_ns)
    assert sum(row.share for row in found.units) == pytest.approx(1)
    assert found.total_ns == pytest.approx(sum(row.total_ns for row in found.units))
    assert sum(row.points for row in found.units) == found.measured == len(set(engine.asked))


def test_what_is_kept_is_told_and_used_again(engine, store):
    first = run_latency_table(request(), store=store)
    again = run_latency_table(request(), store=store)
    assert (again.table.measured, again.table.reused) == (0, first.table.measured)
    assert again.table.units == first.table.units
    assert len(engine.settings) == 1
    (kept,) = run_latency_table(LatencyTableRequest(), store=store).holdings
    assert (kept.engine, kept.batch, kept.threads, kept.points) == ("ort-cpu", 1, 1, first.table.measured)
    assert kept.units == len(first.table.units)
    assert kept.current


def test_the_setting_and_the_granule_are_those_asked_for(engine, store):
    outcome = run_latency_table(request(batch=4, threads=2, alignment=8), store=store)
    assert engine.settings == [Setting(engine="ort-cpu", batch=4, threads=2)]
    assert outcome.table.granule == 8
    assert (outcome.holdings[0].batch, outcome.holdings[0].threads) == (4, 2)


def test_measurements_of_another_version_are_shown_as_not_used(engine, store):
    here = environment_of(Setting(engine="ort-cpu"))
    run_latency_table(request(), store=store)
    points = {row.point: row.timing for row in store.measurements()}
    store.add(dataclasses.replace(here, version="0.1"), 1, points)
    rows = run_latency_table(LatencyTableRequest(), store=store).holdings
    assert {row.version: row.current for row in rows} == {"0.1": False, here.version: True}


def test_clearing_drops_the_engine_that_is_named_or_all(engine, store):
    measured = run_latency_table(request(), store=store).table.measured
    points = {row.point: row.timing for row in store.measurements()}
    store.add(dataclasses.replace(environment_of(Setting(engine="ort-cpu")), engine="trt"), 1, points)
    dropped = run_latency_table(LatencyTableRequest(clear=True, engine="trt"), store=store)
    assert (dropped.cleared, [row.engine for row in dropped.holdings]) == (measured, ["ort-cpu"])
    everything = run_latency_table(LatencyTableRequest(clear=True), store=store)
    assert (everything.cleared, everything.holdings) == (measured, ())


def test_clearing_auto_drops_the_engine_that_it_stands_for(engine, store):
    best = best_engine().name
    here = environment_of(Setting(engine="ort-cpu"))
    unit = Unit(axes=0, inputs=(), operators=())
    for name in (best, "another"):
        store.add(
            dataclasses.replace(here, engine=name), 1, {Point(unit, ()): Timing(latency_ns=1, spread_ns=0, runs=1)}
        )
    outcome = run_latency_table(LatencyTableRequest(clear=True, engine="auto"), store=store)
    assert [row.engine for row in outcome.holdings] == ["another"]


def test_clearing_with_a_model_measures_it_anew(engine, store):
    first = run_latency_table(request(), store=store).table.measured
    outcome = run_latency_table(request(clear=True), store=store)
    assert (outcome.cleared, outcome.table.measured, outcome.table.reused) == (first, first, 0)


def test_everything_is_exported_as_csv(engine, store, tmp_path):
    outcome = run_latency_table(request(export=tmp_path / "all.csv"), store=store)
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == outcome.table.measured
    (dense,) = [
        row
        for row in rows
        if (row["unit"], row["width_1"], row["width_2"]) == ("conv 3x3 + add + relu, 6x6", "16", "16")
    ]
    assert float(dense["latency_ns"]) == cost((16, 16))
    assert (dense["engine"], dense["batch"], dense["threads"]) == ("ort-cpu", "1", "1")
    assert json.loads(dense["unit_key"])[0] == 2


def test_everything_is_exported_as_json(engine, store, tmp_path):
    run_latency_table(request(export=tmp_path / "all.json"), store=store)
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["schema_version"] == 1
    assert len(document["measurements"]) == len(set(engine.asked))
    assert {"engine", "device", "widths", "latency_ns", "spread_ns", "unit", "unit_key"} <= set(
        document["measurements"][0]
    )


def test_an_export_of_another_kind_is_refused_before_anything_is_measured(engine, store, tmp_path):
    with pytest.raises(InputError, match=r"all\.xlsx: is of no known format; name a \.csv or a \.json file"):
        run_latency_table(request(export=tmp_path / "all.xlsx"), store=store)
    assert engine.asked == []


def test_an_export_that_cannot_be_written_is_one_clear_error(engine, store, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        run_latency_table(request(export=tmp_path / "file" / "all.csv"), store=store)
    assert len(store.measurements()) == len(set(engine.asked))


def test_there_are_no_latencies_at_int8():
    with pytest.raises(InputError, match="latencies are not measured in int8"):
        request(precision="int8")
    assert LatencyTableRequest(precision="int8").subject is None


def test_a_checkpoint_is_told_by_its_own_input_size(engine, store, small_model):
    found = run_latency_table(LatencyTableRequest(subject=str(small_model()), engine="ort-cpu"), store=store).table
    assert (found.model, found.input_shape) == ("small_blocks:Blocks", (1, 6, 6))


def test_a_subject_that_is_not_there_is_refused(engine, store):
    with pytest.raises(InputError, match=r"gone\.pt: does not exist"):
        run_latency_table(request(subject="gone.pt"), store=store)
    assert engine.asked == []


def test_the_outcome_is_a_json_document(engine, store):
    document = run_latency_table(request(), store=store).to_document()
    assert json.loads(json.dumps(document))["table"]["units"][0]["points"] > 0
