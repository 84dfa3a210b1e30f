"""Results on standard output, everything else on standard error."""

import io
import json
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prune2deploy.cli.console import print_notes
from prune2deploy.cli.progress import LineProgress
from prune2deploy.cli.tables import TextTable, count, flop_count, plain_lines, rich_table, size
from prune2deploy.pipeline import outcomes

pytestmark = pytest.mark.filterwarnings("ignore:a library warns")

PRUNING = outcomes.PruneOutcome(
    run=Path("p2d-runs/one"),
    model="resnet20",
    method="taylor",
    alignment=16,
    targets={"flops": 0.33},
    achieved={"flops": 0.328, "parameters": 0.3},
    variants=(
        outcomes.VariantRow(
            name="dense",
            flops=81_000_000,
            flops_fraction=1.0,
            parameters=270_000,
            parameters_fraction=1.0,
            accuracy=0.991,
        ),
        outcomes.VariantRow(
            name="pruned",
            flops=26_568_000,
            flops_fraction=0.328,
            parameters=81_000,
            parameters_fraction=0.3,
            accuracy=None,
        ),
    ),
    accuracies={"before_pruning": 0.991, "after_pruning": 0.4},
    notes=("layer1 stayed whole",),
)
INSPECTION = outcomes.InspectOutcome(
    model="resnet20",
    input_shape=(3, 32, 32),
    flops=81_000_000,
    parameters=270_000,
    groups=(outcomes.GroupRow(name="conv1", width=16, channels=16, exact=True, stream=True),),
    frozen=(outcomes.FrozenRow(reason="it is the output", operator="aten.linear", place="fc", axes_total=1),),
    alternatives=("torchvision:resnet20",),
)


def busy(outcome):
    """A stage that reports progress, remarks, prints and warns as libraries do, before it gives its outcome."""

    def behave(progress):
        with progress.task("working", total=2) as task:
            task.advance()
            progress.note("a choice was made")
        print("a library prints")  # noqa: T201 - it must not reach standard output
        logging.getLogger("a.library").warning("a library logs")
        warnings.warn("a library warns", UserWarning, stacklevel=1)
        logging.getLogger("prune2deploy.stage").debug("a detail")
        return outcome

    return behave


@pytest.fixture
def bench_outcome():
    table = TextTable(
        columns=("variant", "speed-up"), rows=(("pruned", "2.9"),), numeric=frozenset({1}), note="intervals"
    )
    return outcomes.BenchOutcome(
        document={"schema_version": 1, "rows": []},
        exit_code=10,
        tables=(table,),
        verdicts=("pruned is REFUTED",),
        file=Path("bench/result.json"),
    )


@pytest.mark.parametrize("flags", [[], ["--quiet"], ["--verbose"]])
def test_json_is_the_only_thing_on_standard_output(flags, stage, run_p2d):
    stage("inspect", busy(INSPECTION))
    result = run_p2d("inspect", "resnet20", "--json", *flags)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["schema_version"] == outcomes.INSPECTION_SCHEMA_VERSION
    assert document["groups"][0]["name"] == "conv1"
    assert document["frozen"][0]["operator"] == "aten.linear"


def test_bench_prints_its_document_and_leaves_with_the_code_of_its_claims(stage, run_p2d, bench_outcome):
    stage("bench", busy(bench_outcome))
    result = run_p2d("bench", "--claim", "3", "--json")
    assert result.exit_code == 10
    assert json.loads(result.stdout) == {"schema_version": 1, "rows": []}


def test_bench_shows_tables_verdicts_and_the_file(stage, run_p2d, bench_outcome):
    stage("bench", busy(bench_outcome))
    result = run_p2d("bench")
    assert result.stdout.splitlines() == [
        "variant  speed-up",
        "pruned        2.9",
        "intervals",
        "",
        "pruned is REFUTED",
        "result: bench/result.json",
    ]


def test_progress_and_remarks_go_to_standard_error(stage, run_p2d):
    stage("prune", busy(PRUNING))
    result = run_p2d("prune", "m", "--flops", "0.33")
    assert result.stderr.splitlines() == ["working", "note: a choice was made", "a library prints"]
    assert "working" not in result.stdout


def test_quiet_drops_progress_and_remarks(stage, run_p2d):
    stage("prune", busy(PRUNING))
    assert run_p2d("prune", "m", "--flops", "0.33", "--quiet").stderr == "a library prints\n"


def test_verbose_shows_our_log_and_what_libraries_warn_of(stage, run_p2d):
    stage("prune", busy(PRUNING))
    stderr = run_p2d("prune", "m", "--flops", "0.33", "--verbose").stderr
    assert "prune2deploy.stage: a detail" in stderr


def test_settings_of_logging_and_warnings_are_put_back(stage, run_p2d):
    before = (logging.root.manager.disable, list(warnings.filters), list(logging.getLogger("prune2deploy").handlers))
    stage("prune", busy(PRUNING))
    for flag in ("--quiet", "--verbose"):
        run_p2d("prune", "m", "--flops", "0.33", flag)
    after = (logging.root.manager.disable, list(warnings.filters), list(logging.getLogger("prune2deploy").handlers))
    assert after == before


def test_pruning_is_summed_up_with_its_variants_and_moments(stage, run_p2d):
    stage("prune", busy(PRUNING))
    lines = run_p2d("prune", "m", "--flops", "0.33").stdout.splitlines()
    assert lines[0] == "resnet20, taylor, granule 16: 0.328 of the FLOPs stay (target 0.33)"
    assert lines[2].split() == ["dense", "81.00", "M", "1.000", "270.00", "k", "1.000", "99.1%"]
    assert lines[3].split() == ["pruned", "26.57", "M", "0.328", "81.00", "k", "0.300", "-"]
    assert lines[4] == "accuracy of pruned: before pruning 99.1%, after pruning 40.0%"
    assert lines[5:] == ["note: layer1 stayed whole", "run: p2d-runs/one", "next: p2d export, then p2d bench"]


LATENCY = {
    "engine": "ort-cpu",
    "precision": "fp32",
    "batch": 1,
    "threads": 1,
    "device": "a CPU",
    "target": {"fraction": 0.5, "ns": 10.65e6},
    "dense_ns": 21.3e6,
    "pruned_ns": 10.59e6,
    "ratio": 0.497,
    "low": 0.493,
    "high": 0.501,
    "met": True,
}


def test_a_latency_target_is_told_with_what_was_measured(stage, run_p2d):
    both = replace(
        PRUNING,
        targets={"latency": 0.5, "memory": 0.6},
        achieved={**PRUNING.achieved, "latency": 0.497, "memory": 0.55},
        latency=LATENCY,
    )
    stage("prune", busy(both))
    lines = run_p2d("prune", "m", "--latency", "0.5").stdout.splitlines()
    assert lines[0] == "resnet20, taylor, granule 16: 0.550 of the memory stay (target 0.6)"
    assert lines[1] == (
        "latency on ort-cpu, fp32, batch 1, 1 thread: 21.3 ms dense, 10.6 ms pruned: "
        "0.497 (0.493 to 0.501) of the dense latency stay (target 0.5, 10.7 ms)"
    )
    alone = replace(both, targets={"latency": 0.5}, latency={**LATENCY, "low": None, "threads": None, "met": False})
    stage("prune", busy(alone))
    lines = run_p2d("prune", "m", "--latency", "0.5").stdout.splitlines()
    assert lines[0] == "resnet20, taylor, granule 16"
    assert lines[1].startswith("latency on ort-cpu, fp32, batch 1: 21.3 ms dense")
    assert lines[1].endswith("0.497 of the dense latency stay (target 0.5, 10.7 ms), which is missed")


def test_a_latency_that_was_missed_shows_the_result_and_leaves_with_3(stage, run_p2d):
    stage("prune", busy(replace(PRUNING, latency=LATENCY, shortfall="the cuts came down to 0.6 of the latency only")))
    result = run_p2d("prune", "m", "--latency", "0.5", "--cuts", "3", "--quiet")
    assert result.exit_code == 3
    assert "run: p2d-runs/one" in result.stdout
    assert "next:" not in result.stdout
    assert "p2d: error: p2d-runs/one: the cuts came down to 0.6 of the latency only; ask for" in result.stderr


def test_every_network_of_a_family_is_told_with_its_latency(stage, run_p2d):
    faster = {
        **LATENCY,
        "threads": 2,
        "target": {"fraction": None, "ns": 460e3},
        "pruned_ns": 455e3,
        "ratio": 0.349,
        "low": None,
    }
    family = replace(PRUNING, family={"pruned-0.5": {"latency": LATENCY}, "pruned-0.35": {"latency": faster}})
    stage("prune", busy(family))
    lines = run_p2d("prune", "m", "--pareto", "0.5,0.35").stdout.splitlines()
    assert lines[0] == "resnet20, taylor, granule 16"
    assert "10.6 ms pruned-0.5: 0.497 (0.493 to 0.501)" in lines[1]
    assert "batch 1, 2 threads: 21.3 ms dense, 455 us pruned-0.35: 0.349 of the" in lines[2]
    assert lines[2].endswith("(target 460 us)")


def test_inspection_names_what_is_frozen_and_why(stage, run_p2d):
    stage("inspect", busy(INSPECTION))
    out = run_p2d("inspect", "resnet20").stdout
    assert "resnet20, input 3x32x32" in out
    assert "81.00 MFLOPs, 270.00 k parameters, 1 widths" in out
    assert "also fits: torchvision:resnet20" in out
    assert "it is the output" in out
    assert "residual stream" in out


@pytest.mark.parametrize(("terminal", "shown"), [(True, "note: new\n"), (False, "note: told\nnote: new\n")])
def test_a_remark_is_not_repeated_on_the_terminal_that_showed_it(terminal, shown, monkeypatch, capsys):
    progress = LineProgress(io.StringIO())
    progress.note("told")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    print_notes(["told", "new"], after=progress)
    assert capsys.readouterr().out == shown


def test_counts_and_sizes_carry_their_unit():
    assert [count(value) for value in (0, 999, 1_300, 25_557_032, 8_178_000_000)] == [
        "0",
        "999",
        "1.30 k",
        "25.56 M",
        "8.18 G",
    ]
    assert [flop_count(value) for value in (640, 4_089_284_608)] == ["640 FLOPs", "4.09 GFLOPs"]
    assert [size(value) for value in (12, 2048, 5 << 20, 3 << 30)] == ["12 B", "2.0 KiB", "5.0 MiB", "3.0 GiB"]


def test_a_table_on_a_terminal_shows_names_as_they_are():
    table = TextTable(columns=("name",), rows=(("conv[red]1[/red]",),), title="widths", note="all of them")
    console = Console(width=60, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(rich_table(table))
    shown = console.file.getvalue()
    assert all(text in shown for text in ("widths", "name", "conv[red]1[/red]", "all of them"))


def test_a_plain_table_never_cuts_a_cell():
    name = "a/very/long/" + "path/" * 60
    table = TextTable(columns=("file", "n"), rows=((name, "1"),))
    assert name in list(plain_lines(table))[1]


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def lines(tmp_path):
    clock = Clock()
    file = tmp_path / "log"
    with file.open("w") as stream:
        yield LineProgress(stream, clock=clock), clock, lambda: file.read_text().splitlines()


def test_lines_of_long_work_come_now_and_then(lines):
    progress, clock, written = lines
    with progress.task("training", total=100) as task:
        for _ in range(100):
            clock.seconds += 0.25
            task.describe("loss 0.5")
            task.advance()
    assert written() == [
        "training",
        "training: 39% loss 0.5",
        "training: 79% loss 0.5",
        "training: done in 25 s",
    ]


def test_short_inner_work_leaves_no_line(lines):
    progress, clock, written = lines
    with progress.task("all"):
        for _ in range(50):
            with progress.task("one layer") as task:
                clock.seconds += 0.01
                task.advance()
    assert written() == ["all"]


def test_failed_work_is_not_called_done(lines):
    progress, clock, written = lines
    work = progress.task("training")
    work.__enter__()
    clock.seconds += 5
    failure = ZeroDivisionError()
    assert not work.__exit__(ZeroDivisionError, failure, None)
    assert written() == ["training"]
