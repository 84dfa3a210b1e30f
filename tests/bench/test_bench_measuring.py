"""Real measurements of real ONNX files: short ones, judged by their structure and never by their timings."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.machine.environment import describe_environment, machine_class
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.process import run_build
from prune2deploy.bench.result import read_samples, write_result
from prune2deploy.bench.statistics.stopping import affordable_builds
from prune2deploy.bench.subjects import BenchOptions, BenchRequest
from prune2deploy.bench.timed.build import measure_build
from prune2deploy.bench.timed.inputs import input_buffers
from prune2deploy.bench.timed.timing import iterations_for, time_block, warm_up
from prune2deploy.engines.engine import TensorInfo
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError, InputError, ParityError

QUICK = BenchOptions(builds=3, rounds=3, block_seconds=0.002)


class Recorder:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.texts: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, *, total: float | None = None) -> Any:
        yield self

    def advance(self, steps: float = 1) -> None:
        self.steps += steps

    def describe(self, text: str) -> None:
        self.texts.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def silent(fraction: float, text: str) -> None:
    """Progress that nobody sees."""


def request_for(networks: Any, **choices: Any) -> BenchRequest:
    dense = networks.subject("dense", channels=16, flops_fraction=1.0)
    pruned = networks.subject("pruned", channels=4, flops_fraction=0.1)
    fields: dict[str, Any] = {"evaluation": networks.evaluation(dense, pruned), "options": QUICK, **choices}
    return BenchRequest(subjects=(dense, pruned), engine="ort-cpu", **fields)


def job_for(request: BenchRequest, *, build: int = 0, budget_seconds: float | None = None) -> BuildJob:
    return BuildJob(request=request, build=build, cpus=None, budget_seconds=budget_seconds)


def test_two_onnx_files_are_measured_from_end_to_end(networks: Any, tmp_path: Path) -> None:
    progress = Recorder()
    result = run_bench(request_for(networks, batches=(1, 4)), progress=progress)
    assert [(row.variant, row.batch) for row in result.rows] == [
        ("dense", 1), ("pruned", 1), ("dense", 4), ("pruned", 4),
    ]  # fmt: skip
    # A build that was disturbed almost throughout does not count, and on a loaded machine none may.
    counting = [sum(build.cell("fp32", batch).counts for build in result.samples) or 3 for batch in (1, 4)]
    for row in result.rows:
        assert len(row.build_medians_ns) == counting[row.batch == 4]
        assert row.latency_ns.samples >= 3 * len(row.build_medians_ns)
        assert row.parity_max_error is not None
        assert row.parity_max_error <= 1e-4
    rows = {row.variant: row for row in result.rows}
    assert rows["dense"].accuracy == 1.0
    assert [control.interval.builds for control in result.controls] == counting
    assert {build.build for build in result.samples} == {0, 1, 2}
    assert progress.steps == pytest.approx(3)
    assert progress.texts[-1] == "build 3 of 3, done"
    assert read_samples(write_result(result, tmp_path / "bench")[1]) == result.samples


def test_every_round_of_a_build_times_all_slots_in_the_seeded_order(networks: Any) -> None:
    request = request_for(networks)
    samples = measure_build(job_for(request), engine_named("ort-cpu"), tell=silent)
    cell = samples.cell("fp32", 1)
    assert len(cell.signals) == cell.rounds + 1
    # Disturbed rounds are repeated, up to as many again.
    assert cell.rounds == min(QUICK.rounds + len(cell.dropped), 2 * QUICK.rounds)
    for turn in range(cell.rounds):
        blocks = [block for block in cell.blocks if block.round == turn]
        assert {(block.variant, block.copy) for block in blocks} == {("dense", 0), ("pruned", 0), ("dense", 1)}
        assert [block.position for block in blocks] == [0, 1, 2]
        assert all(block.samples_ns and min(block.samples_ns) > 0 for block in blocks)
    again = measure_build(job_for(request), engine_named("ort-cpu"), tell=silent)
    orders = [[block.variant for block in one.blocks] for one in (cell, again.cell("fp32", 1))]
    for first, second in zip(*orders, strict=False):
        assert first == second


def test_a_budget_that_is_spent_leaves_three_rounds(networks: Any) -> None:
    request = request_for(networks, options=replace(QUICK, rounds=50))
    samples = measure_build(job_for(request, budget_seconds=0.0), engine_named("ort-cpu"), tell=silent)
    assert len(samples.cell("fp32", 1).signals) == 3 + 1
    assert 0 < samples.minimum_seconds <= samples.seconds


def test_an_engine_over_the_parity_gate_is_never_timed(networks: Any) -> None:
    request = request_for(networks)
    pruned = request.subjects[1]
    networks.evaluation(*request.subjects, wrong="pruned")
    with pytest.raises(ParityError, match=pruned.variant):
        run_build(job_for(request), tell=silent)


def test_without_reference_outputs_parity_is_unknown(networks: Any) -> None:
    samples = measure_build(job_for(request_for(networks, evaluation=None)), engine_named("ort-cpu"), tell=silent)
    assert [fact["parity_max_error"] for fact in samples.engines] == [None, None, None]
    assert samples.accuracies == {}


def test_a_damaged_file_is_refused_by_name(networks: Any) -> None:
    request = request_for(networks)
    request.subjects[1].onnx_path.write_bytes(b"not onnx")
    with pytest.raises(InputError, match=r"pruned\.onnx"):
        run_bench(request)


def test_a_missing_file_is_refused_before_anything_is_built(networks: Any) -> None:
    request = request_for(networks)
    request.subjects[0].onnx_path.unlink()
    with pytest.raises(InputError, match=r"dense\.onnx: is missing"):
        run_bench(request)


def test_a_batch_that_the_file_does_not_take_is_refused(networks: Any) -> None:
    fixed = networks.subject("dense", batch=2)
    request = BenchRequest(subjects=(fixed,), engine="ort-cpu", batches=(4,), options=QUICK)
    with pytest.raises(InputError, match="use --batch 2"):
        measure_build(job_for(request), engine_named("ort-cpu"), tell=silent)


def test_an_unknown_precision_and_engine_are_refused(networks: Any) -> None:
    request = request_for(networks)
    with pytest.raises(InputError, match="no engine"):
        run_bench(replace(request, engine="abacus"))
    half = tuple(replace(subject, precision="fp64") for subject in request.subjects)
    with pytest.raises(InputError, match="fp64"):
        run_bench(replace(request, subjects=half))


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; print('noise'); sys.exit('the last line')", "exit status 1.*the last line"),
        ("import os; os.abort()", "signal 6"),
    ],
)
def test_a_worker_that_dies_is_an_engine_error_with_its_last_line(networks: Any, program: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        run_build(job_for(request_for(networks)), tell=silent, command=[sys.executable, "-c", program])


def test_a_worker_that_hangs_is_ended(networks: Any) -> None:
    hanging = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(EngineError, match="did not finish"):
        run_build(job_for(request_for(networks)), tell=silent, command=hanging, timeout_seconds=0.3)


def test_progress_lines_are_passed_on_and_chatter_is_not(networks: Any) -> None:
    told: list[tuple[float, str]] = []
    program = (
        """print('chatter'); print('[1]'); print('{"fraction": 0.5, "text": "half"}'); print('{"fraction": {}}')"""
    )
    with pytest.raises(EngineError):
        run_build(
            job_for(request_for(networks)),
            tell=lambda fraction, text: told.append((fraction, text)),
            command=[sys.executable, "-c", program],
        )
    assert told == [(0.5, "half")]


def test_an_interrupt_ends_the_worker(networks: Any, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(600)"

    def interrupt_when_running() -> None:
        while not (pid_file.exists() and pid_file.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_running, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_build(job_for(request_for(networks)), tell=silent, command=[sys.executable, "-c", program])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_job_travels_as_a_document(networks: Any) -> None:
    job = BuildJob(request=request_for(networks, batches=(1, 7)), build=2, cpus=(0, 1), budget_seconds=3.5)
    assert BuildJob.from_document(job.to_document()) == job


@pytest.mark.parametrize(
    ("done", "wanted", "remaining", "each", "expected"),
    [(1, 5, 40.0, 8.0, 5), (1, 5, 20.0, 8.0, 3), (1, 5, 7.0, 8.0, 1), (2, 5, -1.0, 8.0, 2), (1, 5, 1.0, 0.0, 5)],
)
def test_builds_are_given_up_where_the_time_does_not_reach(
    done: int, wanted: int, remaining: float, each: float, expected: int
) -> None:
    found = affordable_builds(done=done, wanted=wanted, remaining_seconds=remaining, seconds_each=each)
    assert found == expected


def test_a_time_too_short_for_all_builds_gives_fewer_and_says_so(networks: Any) -> None:
    request = request_for(networks, options=replace(QUICK, builds=50, max_seconds=1.0))
    progress = Recorder()
    result = run_bench(request, progress=progress)
    assert len(result.samples) < 50
    assert any("of 50 builds fitted into 1 s" in note for note in progress.notes)


def test_inputs_are_seeded_never_zero_and_several() -> None:
    infos = [
        TensorInfo(name="x", dtype="float32", shape=(None, 3, 4, 4)),
        TensorInfo(name="n", dtype="int64", shape=(None,)),
    ]
    buffers = input_buffers(infos, batch=2, seed=1, real_inputs=None, where="f")
    assert len(buffers) == 4
    assert [array.shape for array in buffers[0].values()] == [(2, 3, 4, 4), (2,)]
    assert all(np.all(array != 0) for buffer in buffers for array in buffer.values())
    assert not np.array_equal(buffers[0]["x"], buffers[1]["x"])
    again = input_buffers(infos, batch=2, seed=1, real_inputs=None, where="f")
    assert all(np.array_equal(buffers[2][name], again[2][name]) for name in ("x", "n"))


def test_real_inputs_are_used_where_they_fit_and_cast_to_what_the_network_takes() -> None:
    real = np.full((5, 3), 7, dtype=np.float32)
    (info,) = [TensorInfo(name="x", dtype="float16", shape=(None, 3))]
    found = input_buffers([info], batch=8, seed=0, real_inputs=real, where="f")[0]["x"]
    assert (found.dtype, found.shape) == (np.float16, (8, 3))
    assert np.all(found == 7)


def test_bytes_are_real_images_where_these_are_bytes_and_any_byte_otherwise() -> None:
    (info,) = [TensorInfo(name="x", dtype="uint8", shape=(None, 16, 16, 3))]
    real = np.full((5, 16, 16, 3), 7, dtype=np.uint8)
    found = input_buffers([info], batch=2, seed=0, real_inputs=real, where="f")[0]["x"]
    assert found.dtype == np.uint8
    assert np.all(found == 7)
    for unfit in (None, real.astype(np.float32), real[:, :8]):
        made = input_buffers([info], batch=2, seed=0, real_inputs=unfit, where="f")[0]["x"]
        assert made.dtype == np.uint8
        assert (made.min(), made.max()) == (0, 255)


def test_few_buffers_are_made_of_large_inputs() -> None:
    infos = [TensorInfo(name="x", dtype="uint8", shape=(None, 3, 8000, 8000))]
    assert len(input_buffers(infos, batch=1, seed=0, real_inputs=None, where="f")) == 1


def test_a_dynamic_image_size_is_refused() -> None:
    infos = [TensorInfo(name="x", dtype="float32", shape=(None, 3, None, None))]
    with pytest.raises(InputError, match=r"\?x3x\?x\?"):
        input_buffers(infos, batch=1, seed=0, real_inputs=None, where="f.onnx")


def test_a_block_times_each_run_once() -> None:
    calls: list[int] = []
    samples = time_block(lambda: calls.append(1), 17)
    assert (len(samples), len(calls)) == (17, 17)


@pytest.mark.parametrize(("latency_ns", "expected"), [(1e6, 50), (1e9, 1), (10.0, 1024), (0.0, 1024)])
def test_blocks_are_sized_by_time_within_bounds(latency_ns: float, expected: int) -> None:
    assert iterations_for(latency_ns, 0.05) == expected


def test_warming_up_ends_though_blocks_never_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([1000 * 2**turn for turn in range(40)]).tolist())
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(clock))
    warmed = warm_up(lambda: None, block_seconds=1e-9)
    assert (warmed.steady, len(warmed.medians_ns)) == (False, 8)


def test_warming_up_ends_as_soon_as_two_blocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = np.cumsum([5000, 5000, 0, 3000, 0, 1010, 0, 1000, 0, 9, 0, 9]).tolist()
    clock = iter(ticks)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(clock))
    warmed = warm_up(lambda: None, block_seconds=1e-9)
    assert (warmed.steady, warmed.medians_ns) == (True, (3000, 1010, 1000))


def test_environment_says_what_machine_it_is_in_json_values() -> None:
    environment = json.loads(json.dumps(describe_environment(threads=2, cpus=(0, 1)), allow_nan=False))
    assert environment["threads"] == 2
    assert environment["cpus_pinned"] == [0, 1]
    assert environment["machine_class"] == machine_class()
    assert {"prune2deploy", "numpy", "onnx", "python"} <= environment["versions"].keys()
