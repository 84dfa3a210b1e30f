"""The engine prober: points go to a process of its own, and timings or its error come back."""

import json
import sys

import pytest

from prune2deploy.errors import EngineError, InputError
from prune2deploy.graph.unit import Operator, Unit
from prune2deploy.latency.measuring import copies_of
from prune2deploy.latency.points import Point
from prune2deploy.latency.probing import EngineProber
from prune2deploy.latency.setting import Setting

MAP = (1, -1, 16, 16)


def point(width, *tail):
    convolution = Operator(
        name="conv2d",
        reads=(0,),
        shape=MAP,
        attributes=(("bias", True), ("groups", 1), ("kernel", (3, 3)), ("padding", (1, 1)), ("stride", (1, 1))),
    )
    after = tuple(Operator(name=name, reads=(1 + number,), shape=MAP) for number, name in enumerate(tail))
    return Point(Unit(inputs=(MAP,), operators=(convolution, *after), axes=1), (width,))


def answering(*documents):
    """A worker that answers every request with these lines."""
    lines = [document if isinstance(document, str) else json.dumps(document) for document in documents]
    program = f"import sys\nfor line in sys.stdin: print(*{lines!r}, sep='\\n', flush=True)"
    return (sys.executable, "-c", program)


def test_points_are_timed_on_the_cpu_and_the_process_serves_again():
    told = []
    with EngineProber(Setting(engine="ort-cpu")) as prober:
        first = prober.time([point(16, "relu"), point(64, "relu")], tell=told.append)
        second = prober.time([point(32)])
    assert len(first) == 2
    assert sum(told) == 2
    assert len(second) == 1
    for timing in (*first, *second):
        assert timing.latency_ns > 0
        assert timing.spread_ns >= 0
        assert timing.runs > 0


def test_no_points_start_no_process():
    with EngineProber(Setting(engine="ort-cpu"), command=("/nowhere/at/all",)) as prober:
        assert prober.time([]) == ()


def test_int8_is_refused_in_plain_words():
    with (
        EngineProber(Setting(engine="ort-cpu", precision="int8")) as prober,
        pytest.raises(InputError, match="--flops"),
    ):
        prober.time([point(16)])


def test_a_precision_that_the_engine_lacks_is_told_as_its_error():
    with EngineProber(Setting(engine="ort-cpu", precision="bf16")) as prober, pytest.raises(EngineError, match="bf16"):
        prober.time([point(16)])


def test_an_unknown_operator_is_the_users_error_and_the_process_lives_on():
    with EngineProber(Setting(engine="ort-cpu")) as prober:
        with pytest.raises(InputError, match="sort"):
            prober.time([point(16, "sort")])
        assert prober.time([point(16)])[0].latency_ns > 0


def test_the_death_of_the_process_is_an_engine_error_with_its_last_words():
    program = "import sys; sys.stdin.readline(); print('out of memory', file=sys.stderr); sys.exit(9)"
    prober = EngineProber(Setting(engine="ort-cpu"), command=(sys.executable, "-c", program))
    with prober, pytest.raises(EngineError, match=r"exit status 9\): out of memory"):
        prober.time([point(16)])


def test_chatter_of_libraries_is_ignored_and_progress_counts_points():
    timing = {"latency_ns": 2.0, "spread_ns": 1.0, "runs": 3}
    command = answering("hello", "17", {"fraction": 0.5}, {"fraction": 0.55}, {"timings": [timing] * 4})
    told = []
    with EngineProber(Setting(engine="ort-cpu"), command=command) as prober:
        timings = prober.time([point(16)] * 4, tell=told.append)
    assert [one.latency_ns for one in timings] == [2.0] * 4
    assert told == [2, 2]


def test_an_interrupt_ends_the_process():
    def interrupt(points):
        raise KeyboardInterrupt

    prober = EngineProber(Setting(engine="ort-cpu"), command=answering({"fraction": 0.9}, {"timings": []}))
    with pytest.raises(KeyboardInterrupt):
        prober.time([point(16)] * 2, tell=interrupt)
    assert prober._process is None


def test_short_units_are_repeated_more_often_than_long_ones():
    assert copies_of(point(16), batch=1) > copies_of(point(256), batch=1) == 1
