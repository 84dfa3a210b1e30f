"""Options of methods that do not go together are refused in one line, before anything is imported or written."""

from dataclasses import replace
from pathlib import Path

import pytest

from prune2deploy.pipeline.outcomes import MethodOutcome, VariantRow

REFUSED = [
    (("--method", "3sp"), "no target is set"),
    (("--method", "epi"), "no target is set"),
    (
        ("--method", "3sp", "--flops", "0.5", "--window", "5"),
        "--window 5: is no option of --method 3sp; it belongs to epi",
    ),
    (
        ("--method", "epi", "--flops", "0.5", "--per", "none"),
        "--per none: is no option of --method epi; it belongs to 3sp",
    ),
    (
        ("--method", "prunetrain", "--threshold", "0.9"),
        "it belongs to epi and activation-density; prunetrain takes --penalty",
    ),
    (("--method", "activation-density", "--no-dynamic-batch"), "--no-dynamic-batch: is no option of"),
    (("--interval", "5"), "--interval 5: is no option of --method dense; it belongs to prunetrain"),
    (("--flops", "0.5"), "--method dense removes nothing; name a method"),
    (("--variants", "pruned"), "--method dense removes nothing; name a method"),
    (("--method", "3spp"), "did you mean 3sp?"),
    (("--method", "3sp", "--flops", "0.5", "--variants", "dense"), "leaves out the variant that pruning makes"),
    (("--method", "3sp", "--flops", "1.5"), "is more than the whole model"),
    (("--method", "3sp", "--flops", "0.5", "--ema", "1"), "--ema 1: is out of range"),
]


@pytest.mark.parametrize(("typed", "line"), REFUSED)
def test_what_a_method_does_not_take_is_refused(run_p2d, tmp_path, monkeypatch, typed, line):
    monkeypatch.chdir(tmp_path)
    result = run_p2d("train", "resnet20", *typed)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


COST = {
    "training_flops": 40_000_000_000,
    "dense_training_flops": 80_000_000_000,
    "images": 5000,
    "steps": 40,
    "seconds": {"deciding": 0.5, "training": 2.0, "cutting": 0.01},
    "peak_memory_bytes": 3 << 30,
}


def method_outcome(**changes):
    row = VariantRow(name="dense", flops=10, flops_fraction=1.0, parameters=10, parameters_fraction=1.0, accuracy=None)
    return MethodOutcome(
        run=Path("here"),
        bundle=Path("here/pruned"),
        model="tiny",
        data="digits",
        method="prunetrain",
        alignment=16,
        targets={"flops": 0.5},
        achieved={"flops": 0.4},
        variants=(row, replace(row, name="pruned", flops=4, flops_fraction=0.4, accuracy=0.9)),
        costs={"pruned": COST},
        notes=("it went well",),
        **changes,
    )


def test_what_training_cost_is_one_line_in_the_order_of_the_work(stage, run_p2d):
    stage("train", lambda progress: method_outcome())
    result = run_p2d("train", "tiny", "--method", "prunetrain")
    assert result.exit_code == 0
    assert (
        "training pruned: 40.00 GFLOPs, 0.500 of the 80.00 GFLOPs that dense training takes; "
        "2.5 s (training 2.0, deciding 0.5); 2,500 images/s; peak memory 3.0 GiB; 40 steps\n"
    ) in result.stdout
    assert result.stdout.endswith("note: it went well\nrun: here\nnext: p2d export, then p2d bench\n")


def test_a_latency_that_was_a_target_is_told_as_it_was_measured(stage, run_p2d):
    latency = {"engine": "ort-cpu", "precision": "fp32", "batch": 1, "threads": 1, "met": True, "ratio": 0.497}
    times = {"target": {"fraction": 0.5, "ns": 5e5}, "dense_ns": 1e6, "pruned_ns": 4.97e5, "low": 0.49, "high": 0.5}
    stage("train", lambda progress: method_outcome(latency=latency | times))
    result = run_p2d("train", "tiny", "--method", "3sp", "--latency", "0.5")
    assert result.stdout.splitlines()[1] == (
        "latency on ort-cpu, fp32, batch 1, 1 thread: 1 ms dense, 497 us pruned: "
        "0.497 (0.490 to 0.500) of the dense latency stay (target 0.5, 500 us)"
    )


def test_a_shortfall_shows_the_result_and_leaves_with_3(stage, run_p2d):
    outcome = method_outcome(shortfall="prunetrain removed nothing", hint="raise --penalty-ratio")
    stage("train", lambda progress: outcome)
    result = run_p2d("train", "tiny", "--method", "prunetrain")
    assert result.exit_code == 3
    assert result.stderr == "p2d: error: here: prunetrain removed nothing; raise --penalty-ratio\n"
    assert ["pruned", "4", "0.400", "10", "1.000", "90.0%"] in [line.split() for line in result.stdout.splitlines()]
    assert "next:" not in result.stdout
