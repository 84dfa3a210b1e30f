"""The figures that variants are judged by, from hand-made blocks."""

import pytest

from prune2deploy.bench.samples import COPY, DEVICE, QUEUE, WALL, Block, Cell
from prune2deploy.bench.statistics.figures import build_figure_ns, latencies_ns, percentiles_of, throughput_per_s
from prune2deploy.errors import InputError


def block(samples: list[int], *, kind: str = WALL, runs: int = 1, number: int = 0, copy: int = 0) -> Block:
    return Block(variant="dense", copy=copy, round=number, position=0, samples_ns=tuple(samples), kind=kind, runs=runs)


def cell(*blocks: Block, dropped: dict[str, str] | None = None) -> Cell:
    return Cell(precision="fp32", batch=4, blocks=blocks, warmup=(), signals=(), dropped=dropped or {})


def test_batches_are_judged_by_the_median_of_whole_runs() -> None:
    measured = cell(block([10, 30, 20]), block([1], kind=DEVICE), block([5], kind=QUEUE), block([90], copy=1))
    assert build_figure_ns(measured, "dense", scenario="batches") == 20
    assert build_figure_ns(measured, "dense", copy=1, scenario="batches") == 90


def test_single_stream_is_judged_by_the_90th_percentile() -> None:
    measured = cell(block(list(range(101))))
    assert build_figure_ns(measured, "dense", scenario="single-stream") == 90


def test_too_few_runs_give_no_90th_percentile() -> None:
    measured = cell(block([1] * 40), block([1] * 24, number=1), dropped={"1": "was stolen"})
    with pytest.raises(InputError, match="40 runs of dense count in a build, a 90th percentile needs 64"):
        build_figure_ns(measured, "dense", scenario="single-stream")


def test_offline_is_judged_by_all_the_time_over_all_the_runs() -> None:
    measured = cell(
        block([1000], kind=QUEUE, runs=10),
        block([600], kind=QUEUE, runs=2, number=1),
        block([10**6], kind=QUEUE, runs=1, number=2),
        block([5, 5]),
        dropped={"2": "was stolen"},
    )
    assert build_figure_ns(measured, "dense", scenario="offline") == pytest.approx(1600 / 12)
    assert latencies_ns([measured], "dense", scenario="offline") == [100, 300]
    assert throughput_per_s([measured], "dense", batch=4, scenario="offline") == pytest.approx(4e9 * 12 / 1600)


@pytest.mark.parametrize("scenario", ["batches", "offline"])
def test_where_no_run_counts_that_is_said(scenario: str) -> None:
    measured = cell(block([10]), block([10], kind=QUEUE), dropped={"0": "was stolen"})
    with pytest.raises(InputError, match="no run of dense counts"):
        build_figure_ns(measured, "dense", scenario=scenario)
    with pytest.raises(InputError, match="no run of dense counts"):
        throughput_per_s([measured], "dense", batch=4, scenario=scenario)


def test_throughput_counts_slow_runs_by_their_time_and_not_by_a_median() -> None:
    measured = cell(block([10, 10, 10, 970]))
    assert throughput_per_s([measured], "dense", batch=4, scenario="batches") == pytest.approx(4e9 * 4 / 1000)


def test_throughput_is_that_of_the_queue_where_there_is_one() -> None:
    cells = [cell(block([100, 100]), block([120], kind=QUEUE, runs=3)), cell(block([60], kind=QUEUE, runs=1))]
    assert throughput_per_s(cells, "dense", batch=4, scenario="batches") == pytest.approx(4e9 * 4 / 180)
    # One query at a time has no queue.
    assert throughput_per_s(cells, "dense", batch=1, scenario="single-stream") == pytest.approx(1e9 / 100)


def test_percentiles_of_a_kind_pool_all_builds_and_are_absent_where_it_was_not_timed() -> None:
    cells = [cell(block([1, 3], kind=DEVICE)), cell(block([5], kind=DEVICE))]
    found = percentiles_of(cells, "dense", DEVICE)
    assert found is not None
    assert (found.p50, found.samples) == (3, 3)
    assert percentiles_of(cells, "dense", COPY) is None
