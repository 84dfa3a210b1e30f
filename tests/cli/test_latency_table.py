"""``p2d latency-table``: what a user types, and what is shown."""

import json
from pathlib import Path

import pytest

from prune2deploy.pipeline.latency.rows import HoldingRow, LatencyTableOutcome, ModelTable, UnitRow
from prune2deploy.pipeline.requests import LatencyTableRequest

FILE = Path("cache/measured.sqlite3")
HOLDING = HoldingRow(
    engine="ort-cpu",
    version="1.2",
    device="a CPU",
    precision="fp32",
    threads=1,
    batch=1,
    units=26,
    points=377,
    first_at="2026-01-01T00:00:00+00:00",
    last_at="2026-01-02T00:00:00+00:00",
)
OLD = HoldingRow(
    engine="trt",
    version="9.0",
    device="a GPU whose name and memory and driver take more than a column",
    precision="fp16",
    threads=1,
    batch=8,
    units=3,
    points=30,
    first_at="2025-01-01T00:00:00+00:00",
    last_at="2025-01-02T00:00:00+00:00",
    current=False,
)


def unit_row(unit: str, total_ns: float) -> UnitRow:
    return UnitRow(
        unit=unit,
        layers=("layer1.0.conv1",),
        times=2,
        widths=(64, 256),
        half_widths=(32, 128),
        latency_ns=total_ns / 2,
        half_ns=total_ns / 8,
        total_ns=total_ns,
        share=total_ns / 4e6,
        points=12,
        spread=0.013,
    )


TABLE = ModelTable(
    model="torchvision:resnet50",
    input_shape=(3, 224, 224),
    engine="ort-cpu",
    precision="fp32",
    batch=1,
    threads=1,
    granule=16,
    units=(unit_row("conv 1x1 + relu, 56x56", 1e6), unit_row("conv 3x3 + relu, 56x56", 3e6)),
    total_ns=4e6,
    measured=20,
    reused=4,
    seconds=12.0,
    spread=0.013,
    unpriced={"cumsum": 2},
)


def outcome(**changes: object) -> LatencyTableOutcome:
    return LatencyTableOutcome(**{"file": FILE, "holdings": (HOLDING,), **changes})


def test_options_arrive_in_the_request(stage, run_p2d):
    requests = stage("latency.table", lambda progress: outcome())
    options = "--engine ort-cpu --precision fp16 --batch 8 --threads 2 --align 8 --input 3x32x32 --model resnet20"
    assert run_p2d("latency-table", "net.pt", *options.split(), "--export", "all.csv", "--clear").exit_code == 0
    assert requests == [
        LatencyTableRequest(
            subject="net.pt",
            model="resnet20",
            input_shape=(3, 32, 32),
            engine="ort-cpu",
            precision="fp16",
            batch=8,
            threads=2,
            alignment=8,
            export=Path("all.csv"),
            clear=True,
        )
    ]


def test_without_anything_it_asks_for_what_is_kept(stage, run_p2d):
    requests = stage("latency.table", lambda progress: outcome())
    run_p2d("latency-table")
    assert requests == [LatencyTableRequest()]


def test_what_is_kept_is_a_row_an_environment(stage, run_p2d):
    stage("latency.table", lambda progress: outcome(holdings=(HOLDING, OLD)))
    lines = run_p2d("latency-table").stdout.splitlines()
    assert lines[1].split()[:9] == ["ort-cpu", "1.2", "a", "CPU", "fp32", "1", "1", "26", "377"]
    assert "days ago" in lines[1]
    assert "not used here" not in lines[1]
    assert lines[2].endswith("days ago, not used here")
    assert "…" in lines[2]
    assert lines[-1] == f"kept in: {FILE}"


def test_an_empty_table_says_how_to_fill_it(stage, run_p2d):
    stage("latency.table", lambda progress: outcome(holdings=()))
    assert "p2d latency-table torchvision:resnet50 --engine ort-cpu" in run_p2d("latency-table").stdout


def test_a_model_is_told_by_its_units_the_dearest_first(stage, run_p2d):
    stage("latency.table", lambda progress: outcome(table=TABLE))
    lines = run_p2d("latency-table", "torchvision:resnet50").stdout.splitlines()
    assert lines[0] == "torchvision:resnet50, input 3x224x224, on ort-cpu at fp32, batch 1, 1 thread, granule 16"
    assert lines[2].split() == [
        *("conv", "3x3", "+", "relu,", "56x56", "2", "64", "to", "256", "1.500", "32", "to", "128", "0.375"),
        *("3.000", "75.0%", "12", "1.3%"),
    ]
    assert lines[3].startswith("conv 1x1")
    assert lines[-3] == "4.000 ms in 2 units; 20 points measured in 12 s, 4 kept from before, spread 1.3%"
    assert lines[-2] == "in no unit, so not counted: cumsum (2)"


def test_clearing_and_exporting_say_how_much(stage, run_p2d):
    stage("latency.table", lambda progress: outcome(cleared=30, exported=Path("all.csv")))
    lines = run_p2d("latency-table", "--clear", "--export", "all.csv").stdout.splitlines()
    assert lines[0] == "dropped 30 measurements"
    assert "exported: 377 measurements to all.csv" in lines


def test_json_is_one_document_and_nothing_else(stage, run_p2d):
    stage("latency.table", lambda progress: outcome(table=TABLE, exported=Path("all.csv")))
    document = json.loads(run_p2d("latency-table", "torchvision:resnet50", "--json").stdout)
    assert document["schema_version"] == 1
    assert document["file"] == str(FILE)
    assert document["exported"] == "all.csv"
    assert document["holdings"][0]["points"] == 377
    assert document["table"]["units"][0]["widths"] == [64, 256]
    assert document["table"]["total_ns"] == 4e6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m", "--engine", "abacus"], "abacus"),
        (["m", "--precision", "fp12"], "fp12"),
        (["m", "--precision", "int8"], "latencies are not measured in int8"),
        (["m", "--batch", "0"], "--batch"),
        (["m", "--align", "x"], "is no granule"),
        (["m", "--input", "3x3"], "is no input shape"),
    ],
)
def test_bad_values_are_refused_in_one_line(stage, run_p2d, arguments, words):
    requests = stage("latency.table", lambda progress: outcome())
    result = run_p2d("latency-table", *arguments)
    assert (result.exit_code, requests) == (2, [])
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_interrupted_measurement_leaves_with_130(stage, run_p2d):
    def interrupt(progress: object) -> None:
        raise KeyboardInterrupt

    stage("latency.table", interrupt)
    result = run_p2d("latency-table", "m")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
