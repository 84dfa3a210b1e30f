"""The engine prober: points go to a process of its own, and timings or its error come back."""

import json
import sys
from types import SimpleNamespace

import onnx
import pytest

from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError, InputError
from prune2deploy.graph.unit import Operator, Unit
from prune2deploy.latency.measuring import copies_of, time_points
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


def test_torch_is_refused_because_it_runs_no_onnx_files():
    with pytest.raises(EngineError, match="runs bundles"):
        time_points(engine_named("torch"), [point(16)], Setting(engine="torch"), tell=lambda fraction: None)


class WithoutProfiler:
    """ONNX Runtime on the CPU, but for its profiler."""

    def __init__(self, *, refuses=()):
        self._engine, self._refuses = engine_named("ort-cpu"), refuses
        self.name, self.precisions = "blind", self._engine.precisions
        self.availability = self._engine.availability

    def build(self, path, options):
        nodes = {node.op_type for node in onnx.load(path).graph.node}
        if nodes & set(self._refuses):
            raise EngineError("lacks an operator")
        built = self._engine.build(path, options)
        names = ("inputs", "outputs", "bind", "run", "read", "inspect", "close")
        return SimpleNamespace(**{name: getattr(built, name) for name in names})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_a_profiler_the_copies_of_a_unit_are_timed(precision):
    told = []
    points = [point(16), point(64, "relu")]
    setting = Setting(engine="blind", precision=precision, batch=4)
    timings = time_points(WithoutProfiler(), points, setting, tell=told.append)
    assert len(timings) == 2
    assert timings[1].latency_ns > 0
    assert timings[1].runs > 0
    assert told == [0.5, 1.0]


def test_a_unit_that_the_engine_cannot_run_is_named():
    engine = WithoutProfiler(refuses=["Tanh"])
    with pytest.raises(EngineError, match=r"cannot run conv2d \+ tanh of 1x16x16x16 \(lacks an operator\)"):
        time_points(engine, [point(8), point(16, "tanh")], Setting(engine="blind"), tell=lambda fraction: None)


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
