"""Measurements on disk: found again, never mixed, never in the way."""

import dataclasses
import sqlite3
import subprocess
import sys
import threading

import pytest

from prune2deploy.errors import EngineError, InputError, StorageError
from prune2deploy.graph.unit import Operator, Unit
from prune2deploy.latency.environment import Environment, environment_of
from prune2deploy.latency.points import Point, Timing
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.store import LatencyStore, store_path

HERE = Environment(engine="ort-cpu", version="1.2", device="a CPU (avx2)", precision="fp32", threads=1)
CONV = Unit(
    axes=2,
    inputs=((1, -1, 8, 8),),
    operators=(
        Operator(name="conv2d", reads=(0,), shape=(1, -2, 8, 8), attributes=(("bias", True), ("kernel", (3, 3)))),
        Operator(name="relu", reads=(1,), shape=(1, -2, 8, 8)),
    ),
)
RELU = Unit(axes=1, inputs=((1, -1, 8, 8),), operators=(Operator(name="relu", reads=(0,), shape=(1, -1, 8, 8)),))


class Notes:
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def timing(latency_ns: float) -> Timing:
    return Timing(latency_ns=latency_ns, spread_ns=latency_ns / 50, runs=7, times=2)


@pytest.fixture
def store(tmp_path):
    return LatencyStore(tmp_path / "cache" / "measured.sqlite3")


def test_what_was_kept_is_found_by_another_store_of_the_same_file(store):
    kept = {Point(CONV, (16, 32)): timing(1e6), Point(RELU, (16,)): timing(0.1)}
    store.add(HERE, 1, kept)
    assert LatencyStore(store.path).find(HERE, 1, [*kept, Point(CONV, (16, 48))]) == kept


def test_a_file_that_is_not_there_holds_nothing_and_is_not_made(store):
    assert store.find(HERE, 1, [Point(CONV, (16, 32))]) == {}
    assert (store.holdings(), store.measurements(), store.clear()) == ((), (), 0)
    assert not store.path.parent.exists()


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "openvino"},
        {"version": "1.3"},
        {"device": "a CPU (avx2, avx512f)"},
        {"precision": "fp16"},
        {"threads": 2},
        {"protocol": HERE.protocol + 1},
    ],
)
def test_measurements_of_another_environment_are_not_taken(store, other):
    point = Point(CONV, (16, 32))
    elsewhere = dataclasses.replace(HERE, **other)
    store.add(elsewhere, 1, {point: timing(5)})
    assert store.find(HERE, 1, [point]) == {}
    assert store.find(elsewhere, 1, [point]) == {point: timing(5)}


def test_measurements_at_another_batch_size_are_not_taken(store):
    point = Point(CONV, (16, 32))
    store.add(HERE, 8, {point: timing(5)})
    assert store.find(HERE, 1, [point]) == {}


def test_a_later_measurement_takes_the_place_of_an_earlier_one(store):
    point = Point(CONV, (16, 32))
    store.add(HERE, 1, {point: timing(5)})
    store.add(HERE, 1, {point: timing(6)})
    assert store.find(HERE, 1, [point]) == {point: timing(6)}
    assert len(store.measurements()) == 1


def test_holdings_count_units_and_points_by_environment_and_batch(store):
    points = {Point(CONV, (16, 32)): timing(5), Point(CONV, (32, 32)): timing(9), Point(RELU, (16,)): timing(1)}
    store.add(HERE, 1, points)
    store.add(HERE, 8, {Point(RELU, (16,)): timing(8)})
    store.add(dataclasses.replace(HERE, threads=4), 1, {Point(RELU, (16,)): timing(1)})
    found = [
        (holding.environment.threads, holding.batch, holding.units, holding.points) for holding in store.holdings()
    ]
    assert found == [(1, 1, 2, 3), (1, 8, 1, 1), (4, 1, 1, 1)]
    assert all(holding.first_at <= holding.last_at for holding in store.holdings())


def test_everything_comes_back_with_its_unit(store):
    kept = {Point(CONV, (16, 32)): timing(5), Point(RELU, (16,)): timing(1)}
    store.add(HERE, 4, kept)
    rows = store.measurements()
    assert {row.point: row.timing for row in rows} == kept
    assert {(row.environment, row.batch) for row in rows} == {(HERE, 4)}


def test_clearing_drops_one_engine_or_all(store):
    point = Point(RELU, (16,))
    for engine in ("ort-cpu", "openvino", "trt"):
        store.add(dataclasses.replace(HERE, engine=engine), 1, {point: timing(1)})
    assert store.clear(engine="trt") == 1
    assert [holding.environment.engine for holding in store.holdings()] == ["openvino", "ort-cpu"]
    assert store.clear() == 2
    assert store.holdings() == ()


@pytest.mark.parametrize("content", [b"no database at all, and long enough to be looked at" * 40, b"short"])
def test_a_damaged_file_is_moved_aside_with_a_note(store, content):
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    notes = Notes()
    again = LatencyStore(store.path, progress=notes)
    assert again.find(HERE, 1, [Point(RELU, (16,))]) == {}
    assert len(notes.told) == 1
    assert "damaged" in notes.told[0]
    assert store.path.with_suffix(".damaged").read_bytes() == content
    again.add(HERE, 1, {Point(RELU, (16,)): timing(1)})
    assert len(again.measurements()) == 1


def test_pages_that_were_overwritten_are_noticed(store):
    store.add(HERE, 1, {Point(CONV, (width, width)): timing(width) for width in range(1, 400)})
    content = bytearray(store.path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    store.path.write_bytes(content)
    notes = Notes()
    assert LatencyStore(store.path, progress=notes).measurements() == ()
    assert "damaged" in notes.told[0]


def test_a_file_of_another_schema_is_not_read(store):
    store.add(HERE, 1, {Point(RELU, (16,)): timing(1)})
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert store.measurements() == ()
    assert store.path.with_suffix(".damaged").exists()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = LatencyStore(tmp_path / "file" / "measured.sqlite3")
    with pytest.raises(StorageError, match=r"measured\.sqlite3: latencies cannot be kept \(.+\); free some space"):
        store.add(HERE, 1, {Point(RELU, (16,)): timing(1)})


def test_a_lock_that_is_never_given_back_is_one_clear_error(store, monkeypatch):
    store.add(HERE, 1, {Point(RELU, (16,)): timing(1)})
    monkeypatch.setattr("prune2deploy.latency.store.LOCK_SECONDS", 0.05)
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="locked"):
        store.add(HERE, 1, {Point(RELU, (32,)): timing(1)})
    with pytest.raises(StorageError, match="locked"):
        store.find(HERE, 1, [Point(RELU, (16,))])
    holder.close()
    assert len(store.measurements()) == 1


def test_several_writers_lose_nothing(store):
    def write(worker: int) -> None:
        for width in range(20):
            LatencyStore(store.path).add(HERE, 1, {Point(RELU, (1 + width + 100 * worker,)): timing(1)})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.measurements()) == 80


def test_a_writer_that_is_killed_leaves_what_it_had_finished(store):
    store.add(HERE, 1, {Point(RELU, (16,)): timing(1)})
    program = f"""
import os, sqlite3
half = sqlite3.connect({str(store.path)!r}, isolation_level=None)
half.execute("BEGIN IMMEDIATE")
half.execute("DELETE FROM timing")
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 9
    assert len(store.measurements()) == 1


def test_the_file_lies_in_the_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store_path().is_relative_to(tmp_path)
    assert LatencyStore().path == store_path()


def test_the_environment_names_engine_version_and_device():
    found = environment_of(Setting(engine="ort-cpu", threads=2))
    assert (found.engine, found.precision, found.threads) == ("ort-cpu", "fp32", 2)
    assert found.version[0].isdigit()
    assert found.device


def test_an_engine_that_is_unknown_or_does_not_run_has_no_environment(monkeypatch):
    with pytest.raises(InputError, match="no engine"):
        environment_of(Setting(engine="abacus"))
    monkeypatch.setattr("prune2deploy.engines.openvino.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="openvino is not installed"):
        environment_of(Setting(engine="openvino"))
