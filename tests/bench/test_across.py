"""Two measurements against each other: what is compared, what is refused, and how often noise is called a change."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prune2deploy.bench.across.changes import Change, Comparison, Outcome, compare_results, exit_code
from prune2deploy.bench.across.comparable import Conditions
from prune2deploy.bench.result import BenchResult, Control, Row
from prune2deploy.bench.statistics.intervals import Interval, Percentiles
from prune2deploy.errors import InputError

ENVIRONMENT = {
    "machine_class": "One CPU, 2 CPUs",
    "cpu": "One CPU",
    "cpus_allowed": [0, 1],
    "memory_bytes": 8 << 30,
    "gpu": None,
    "architecture": "x86_64",
    "os": "Linux 6",
    "threads": 1,
    "versions": {"onnxruntime": "1.30"},
}


def row(
    variant: str, medians_ns: Sequence[float], *, batch: int = 1, sha256: str = "00", engine: str = "ort-cpu"
) -> Row:
    middle = float(np.median(medians_ns))
    return Row(
        variant=variant,
        engine=engine,
        precision="fp32",
        batch=batch,
        latency_ns=Percentiles(p50=middle, p90=None, p99=None, samples=len(medians_ns)),
        build_medians_ns=tuple(float(value) for value in medians_ns),
        distribution_ns=(),
        throughput_per_s=1e9 / middle,
        speedups=(),
        flops_fraction=None,
        parameters_fraction=None,
        flop_yield=None,
        accuracy=None,
        parity_max_error=None,
        file=f"{variant}.onnx",
        sha256=sha256,
    )


def result(*rows: Row, passed: bool = True, **environment: Any) -> BenchResult:
    settings = dict.fromkeys((one.engine, one.precision, one.batch) for one in rows)
    interval = Interval(estimate=1.0, low=0.99, high=1.01, confidence=0.999, builds=5)
    return BenchResult(
        environment={**ENVIRONMENT, **environment},
        protocol={"scenario": "batches"},
        baseline="dense",
        rows=rows,
        claims=(),
        controls=tuple(
            Control(engine=engine, precision=precision, batch=batch, interval=interval, passed=passed)
            for engine, precision, batch in settings
        ),
        notes=(),
    )


def measured(
    speedup: float, *, dense_ns: float = 1000.0, spread: float = 0.002, seed: int = 0, builds: int = 5
) -> BenchResult:
    """A result in which dense itself wanders by a fifth from build to build, and the variant with it."""
    generator = np.random.default_rng(seed)
    dense = dense_ns * np.exp(0.2 * generator.standard_normal(builds))
    pruned = dense / speedup * np.exp(spread * generator.standard_normal(builds))
    return result(row("dense", dense), row("pruned", pruned))


def only_change(before: BenchResult, after: BenchResult, **choices: Any) -> Change:
    (change,) = compare_results(before, after, **choices).changes
    return change


def test_a_slower_machine_is_no_slower_model() -> None:
    change = only_change(measured(2.0, seed=1), measured(2.0, dense_ns=1500.0, seed=2))
    assert change.outcome is Outcome.SAME
    assert change.estimate == pytest.approx(1.0, abs=0.01)
    assert (change.before, change.after) == (pytest.approx(2.0, rel=0.01), pytest.approx(2.0, rel=0.01))


@pytest.mark.parametrize(
    ("after", "spread", "outcome", "code"),
    [
        (1.9, 0.002, Outcome.SLOWER, 13),
        (2.1, 0.002, Outcome.FASTER, 0),
        (2.0, 0.002, Outcome.SAME, 0),
        (1.99, 0.02, Outcome.UNDECIDED, 0),
    ],
)
def test_a_change_is_told_beyond_the_tolerance(after: float, spread: float, outcome: Outcome, code: int) -> None:
    comparison = compare_results(measured(2.0, seed=1), measured(after, spread=spread, seed=2))
    assert [change.outcome for change in comparison.changes] == [outcome]
    assert comparison.exit_code == code


def test_a_change_within_the_tolerance_is_none_however_sure() -> None:
    exact = {"spread": 1e-5, "builds": 8}
    change = only_change(measured(2.0, seed=1, **exact), measured(1.985, seed=2, **exact))
    assert change.high is not None
    assert change.high < 1
    assert change.outcome is Outcome.SAME
    stricter = only_change(measured(2.0, seed=1, **exact), measured(1.985, seed=2, **exact), tolerance=0.0)
    assert stricter.outcome is Outcome.SLOWER


def test_the_interval_is_welchs_on_the_logarithms() -> None:
    before = result(row("dense", [100] * 3), row("pruned", [50, 51, 52]))
    after = result(row("dense", [100] * 4), row("pruned", [60, 60.5, 61, 62]))
    change = only_change(before, after)
    first, second = np.log([2, 100 / 51, 100 / 52]), np.log([100 / 60, 100 / 60.5, 100 / 61, 100 / 62])
    shares = np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 4
    freedom = sum(shares) ** 2 / (shares[0] ** 2 / 2 + shares[1] ** 2 / 3)
    # Student's 97.5% quantile at the Welch-Satterthwaite degrees of freedom, from a table between 3 and 4.
    assert 3 < freedom < 5
    assert change.low is not None
    assert change.high is not None
    assert change.estimate == pytest.approx(np.exp(second.mean() - first.mean()))
    assert change.low * change.high == pytest.approx(change.estimate**2)
    reach = np.log(change.high / change.estimate) / np.sqrt(sum(shares))
    assert 2.571 < reach < 3.182
    assert (change.builds_before, change.builds_after) == (3, 4)


def test_two_builds_decide_nothing() -> None:
    change = only_change(measured(2.0, builds=2), measured(1.0, builds=5))
    assert (change.low, change.high, change.p_value, change.outcome) == (None, None, None, Outcome.UNDECIDED)


def test_builds_without_any_spread_are_compared_exactly() -> None:
    before = result(row("dense", [100.0] * 3), row("pruned", [50.0] * 3))
    after = result(row("dense", [100.0] * 3), row("pruned", [62.5] * 3))
    assert only_change(before, after).outcome is Outcome.SLOWER
    assert only_change(before, before).outcome is Outcome.SAME


def test_many_unchanged_rows_raise_few_alarms() -> None:
    generator = np.random.default_rng(7)

    def of_twenty() -> BenchResult:
        rows = [row("dense", [1000.0] * 5)]
        rows += [row(f"v{n}", 500 * np.exp(0.02 * generator.standard_normal(5))) for n in range(20)]
        return result(*rows)

    alarms = sum(compare_results(of_twenty(), of_twenty(), tolerance=0.0).exit_code != 0 for _ in range(100))
    # Unadjusted, two of five such comparisons would hold a false alarm.
    assert alarms <= 10


def test_a_failed_control_makes_its_setting_invalid() -> None:
    good, bad = (
        measured(2.0, seed=1),
        replace(measured(1.0, seed=2), controls=result(row("dense", [1]), passed=False).controls),
    )
    for pair in ((good, bad), (bad, good)):
        comparison = compare_results(*pair)
        assert comparison.changes[0].outcome is Outcome.INVALID
        assert comparison.exit_code == 12


def test_invalid_comes_before_slower() -> None:
    slower = only_change(measured(2.0, seed=1), measured(1.5, seed=2))
    invalid = replace(slower, outcome=Outcome.INVALID)
    assert exit_code([slower, invalid]) == 12
    assert exit_code([slower]) == 13
    assert exit_code([]) == 0


def test_a_disturbed_measurement_is_invalid() -> None:
    before, after = measured(2.0, seed=1), measured(2.0, seed=2)
    disturbed = tuple(replace(control, disturbed="a neighbour") for control in after.controls)
    assert only_change(before, replace(after, controls=disturbed)).outcome is Outcome.INVALID


def test_rows_of_one_side_and_what_else_differs_are_listed() -> None:
    before = result(row("dense", [10] * 3), row("pruned", [5] * 3), row("old", [4] * 3))
    after = result(
        row("dense", [10] * 3, sha256="11"),
        row("pruned", [5] * 3),
        row("new", [3] * 3),
        versions={"onnxruntime": "1.31"},
        os="Linux 7",
    )
    comparison = compare_results(before, after)
    assert comparison.only_before == (("old", "ort-cpu", "fp32", 1),)
    assert comparison.only_after == (("new", "ort-cpu", "fp32", 1),)
    assert comparison.differences == {"onnxruntime": ("1.30", "1.31"), "os": ("Linux 6", "Linux 7")}
    assert [one.same_file for one in comparison.changes] == [True]
    assert [(one.before_ns, one.after_ns, one.same_file) for one in comparison.baselines] == [(10.0, 10.0, False)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"machine_class": "Two", "cpu": "Another CPU"},
            r"different machines \(CPU: One CPU before, Another CPU after\)",
        ),
        ({"machine_class": "Two", "cpus_allowed": [0, 1, 2, 3]}, r"number of CPUs: 2 before, 4 after"),
        ({"machine_class": "Two"}, r"One CPU, 2 CPUs before, Two after"),
        ({"machine_class": None}, "does not say which machine"),
        ({"threads": 2}, r"different numbers of threads \(1 before, 2 after\)"),
    ],
)
def test_what_was_not_measured_alike_is_refused(changed: dict[str, Any], message: str) -> None:
    before = measured(2.0)
    with pytest.raises(InputError, match=message):
        compare_results(before, replace(before, environment={**before.environment, **changed}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": {"scenario": "offline"}}, r"different scenarios \(batches before, offline after\)"),
        ({"baseline": "pruned"}, r"different base variants \(dense before, pruned after\)"),
        (
            {"protocol": {"shapes": {"input": [1, 3, 8, 8]}}},
            r"different input shapes \(none given before, input=1x3x8x8 after\)",
        ),
    ],
)
def test_another_way_of_measuring_is_refused(changed: dict[str, Any], message: str) -> None:
    before = measured(2.0)
    with pytest.raises(InputError, match=message):
        compare_results(before, replace(before, **changed))


def test_results_without_a_shared_row_are_refused_by_naming_both() -> None:
    before = result(row("dense", [10] * 3), row("pruned", [5] * 3))
    after = result(row("dense", [10] * 3, engine="openvino"), row("pruned", [5] * 3, engine="openvino"))
    with pytest.raises(InputError, match=r"before: pruned on ort-cpu at fp32, batch 1; after: pruned on openvino"):
        compare_results(before, after)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: (rows[0], replace(rows[1], build_medians_ns=(1.0,))), "cannot pair 5 builds with 1"),
        (lambda rows: rows[1:], "pruned has no dense beside it at fp32, batch 1"),
        (lambda rows: (rows[0], replace(rows[1], build_medians_ns=(0.0,) * 5)), "a latency of zero"),
    ],
)
def test_a_result_whose_builds_do_not_pair_is_refused(damage: Any, message: str) -> None:
    before = measured(2.0)
    with pytest.raises(InputError, match=message):
        compare_results(before, replace(before, rows=damage(before.rows)))


def test_a_result_made_before_there_were_scenarios_was_one_of_batches() -> None:
    assert Conditions.of(replace(measured(2.0), protocol={})).scenario == "batches"


def test_a_comparison_reads_back_as_it_was() -> None:
    comparison = compare_results(measured(2.0, seed=1), measured(1.9, seed=2))
    document = json.loads(json.dumps({"file": "old.json", **comparison.to_document()}, allow_nan=False))
    assert Comparison.from_document(document, where="x") == comparison
    kept = replace(measured(2.0), baseline_comparison=document)
    assert BenchResult.from_document(json.loads(json.dumps(kept.to_document()))).baseline_comparison == document


@pytest.mark.parametrize(
    "damage", [{"changes": [{}]}, {"tolerance": None}, {"only_before": [["a"]]}, {"differences": 3}]
)
def test_a_damaged_comparison_is_refused(damage: dict[str, Any]) -> None:
    document = compare_results(measured(2.0, seed=1), measured(1.9, seed=2)).to_document()
    with pytest.raises(InputError, match="the comparison with the baseline is damaged"):
        Comparison.from_document({**document, **damage}, where="old.json")
