"""The table of speeds: what it shows of engines on a device, and in each scenario."""

from collections.abc import Callable

from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.samples import COPY, DEVICE, QUEUE, WALL
from prune2deploy.report.speed_table import speed_table


def test_there_is_a_row_for_each_variant_and_batch(make_result: Callable[..., BenchResult]) -> None:
    table = speed_table(make_result())
    assert [(row[0], row[1]) for row in table.rows] == [
        (variant, batch) for batch in ("1", "32") for variant in ("dense", "pruned", "reduced")
    ]
    assert {"against dense", "against reduced", "p99", "yield"} <= set(table.columns)
    assert "on the device" not in table.columns
    assert table.title == "Speed on ort-cpu, fp32"


def test_time_on_the_device_has_a_column_and_copies_rows_of_their_own(
    make_scenario: Callable[..., BenchResult],
) -> None:
    kinds = {WALL: (1_000_000, 1), DEVICE: (800_000, 1), COPY: (100_000, 1), QUEUE: (8_200_000, 10)}
    table = speed_table(make_scenario("batches", kinds))
    assert [row[0] for row in table.rows] == [
        "dense", "dense: inputs to the device", "pruned", "pruned: inputs to the device",
    ]  # fmt: skip
    assert {len(row) for row in table.rows} == {len(table.columns)}
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert (cells[0]["median"], cells[0]["on the device"], cells[0]["inputs/s"]) == ("1.00 ms", "800 µs", "1.22 k")
    assert (cells[1]["median"], cells[1]["on the device"], cells[1]["inputs/s"]) == ("100 µs", "–", "–")
    assert cells[3]["against dense"] == "–"


def test_single_stream_says_that_the_90th_percentile_is_judged(make_scenario: Callable[..., BenchResult]) -> None:
    table = speed_table(make_scenario("single-stream", {WALL: (1_000_000, 1)}))
    assert table.title == "Speed on trt, fp16, single-stream"
    assert "p90, judged" in table.columns
    assert table.note is not None
    assert "one input at a time" in table.note


def test_offline_shows_throughput_and_no_percentiles_of_a_latency(make_scenario: Callable[..., BenchResult]) -> None:
    table = speed_table(make_scenario("offline", {QUEUE: (8_000_000, 10)}))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["a batch takes"], cells["inputs/s, judged"]) == ("800 µs", "1.25 k")
    assert not {"median", "p90", "p99"} & set(table.columns)
    assert dict(zip(table.columns, table.rows[1], strict=True))["against dense"].startswith("2.00×")
