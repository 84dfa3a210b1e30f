"""The scenarios, measured on real ONNX files: what is timed, and what follows from it."""

from dataclasses import replace
from typing import Any

import pytest

from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.samples import QUEUE, WALL, BuildSamples
from prune2deploy.bench.subjects import DEFAULT_BATCHES, SCENARIOS, BenchOptions, BenchRequest
from prune2deploy.bench.summary import summarise
from prune2deploy.bench.timed.build import measure_build
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import InputError


def request_for(networks: Any, scenario: str, *, engine: str = "ort-cpu", batch: int = 1) -> BenchRequest:
    return BenchRequest(
        subjects=(networks.subject("dense", channels=16), networks.subject("pruned", channels=8)),
        engine=engine,
        batches=(batch,),
        options=BenchOptions(builds=1, rounds=3, block_seconds=0.002, scenario=scenario),
    )


def measured(request: BenchRequest) -> BuildSamples:
    """One build; a test asks for no quiet machine, and so every round counts."""
    job = BuildJob(request=request, build=0, cpus=None, budget_seconds=None)
    build = measure_build(job, engine_named(request.engine), tell=lambda fraction, text: None)
    return replace(build, cells=tuple(cell.with_disturbed_rounds() for cell in build.cells))


def test_single_stream_is_judged_and_shown_by_runs_of_one_input(networks: Any) -> None:
    request = request_for(networks, "single-stream")
    build = measured(request)
    (cell,) = build.cells
    assert {block.kind for block in cell.blocks} == {WALL}
    row = summarise(request, [build], environment={}).rows[0]
    assert row.latency_ns.p90 is not None
    assert row.build_medians_ns == pytest.approx((row.latency_ns.p90,))
    total = sum(cell.samples_of("dense"))
    assert row.throughput_per_s == pytest.approx(1e9 * len(cell.samples_of("dense")) / total)


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_offline_is_judged_by_the_throughput_over_queues(networks: Any, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    request = request_for(networks, "offline", engine=engine, batch=4)
    build = measured(request)
    (cell,) = build.cells
    assert {block.kind for block in cell.blocks} == {QUEUE}
    row = summarise(request, [build], environment={}).rows[1]
    assert row.throughput_per_s == pytest.approx(4e9 / row.build_medians_ns[0])
    assert row.latency_ns.samples == cell.rounds
    assert row.device_ns is None
    assert row.copy_ns is None


def test_single_stream_takes_one_input_at_a_time_only(networks: Any) -> None:
    with pytest.raises(InputError, match="--batch: single-stream sends one input at a time, not 8"):
        request_for(networks, "single-stream", batch=8)


def test_every_scenario_has_batch_sizes_that_it_takes(networks: Any) -> None:
    assert DEFAULT_BATCHES.keys() == SCENARIOS.keys()
    for scenario, batches in DEFAULT_BATCHES.items():
        assert replace(request_for(networks, scenario), batches=batches).batches == batches
