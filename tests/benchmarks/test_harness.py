"""``benchmarks/harness.py``: a real comparison is kept and not done again, and the tables count rightly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness_table import tables

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "harness.py"


def record(low: float, high: float, *, disturbed: str | None = None, load: str | None = None) -> dict[str, Any]:
    return {
        "load": load,
        "ratios": {"second": {"estimate": (low * high) ** 0.5, "low": low, "high": high}},
        "control": {"passed": True, "disturbed": disturbed},
        "naive_ms": [10.0, 10.5],
        "builds": 5,
        "seconds": 20.0,
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_intervals_that_exclude_one_are_counted_among_valid_comparisons_only() -> None:
    comparisons = {
        "same/unloaded/0": record(0.99, 1.01),
        "same/unloaded/1": record(1.005, 1.012),
        "same/unloaded/2": record(1.03, 1.05, disturbed="9 of 12 rounds were disturbed"),
    }
    line = cells(tables({"comparisons": comparisons, "reference": []})[2])
    assert line[:5] == ["no load of ours", "3", "1", "1 of 2", "2 of 3"]
    assert line[-1] == "3 of 3"


def test_a_confirmed_claim_of_two_percent_between_copies_is_a_wrong_verdict() -> None:
    comparisons = {"same/unloaded/0": record(1.03, 1.05), "same/unloaded/1": record(0.9, 0.95)}
    assert cells(tables({"comparisons": comparisons, "reference": []})[2])[5] == "2"


def test_the_truth_is_that_of_the_reference() -> None:
    ratio = {"estimate": 1.02, "low": 1.01, "high": 1.03}
    missed = {"estimate": 1.1, "low": 1.09, "high": 1.11}
    names = {"slower-204": ratio, "slower-210": missed, "slower-240": ratio, "slower-400": ratio}
    known = {**record(1, 1), "ratios": names, "naive_ms": [10.0, 10.2, 10.2, 10.2, 10.9]}
    reference = [[100.0 * part, 102.0 * part, 102.0 * part, 102.0 * part, 102.0 * part] for part in (1.0, 1.1, 0.9)]
    lines = [cells(line) for line in tables({"comparisons": {"known/0": known}, "reference": reference})]
    held = {line[0]: line[2] for line in lines if len(line) == 7}
    assert (held["2%"], held["5%"], held["all"]) == ("1 of 1", "0 of 1", "3 of 4")


def test_a_comparison_of_a_network_with_its_copy_is_kept_and_not_done_again(tmp_path: Path) -> None:
    out = tmp_path / "harness.json"
    command = [sys.executable, str(PROGRAM), "same", "--comparisons", "1", "--seconds", "3", "--load"]
    command += ["--work", str(tmp_path), "--out", str(out)]
    first = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert "same/loaded/0" in first.stdout
    kept = json.loads(out.read_text())["comparisons"]["same/loaded/0"]
    assert kept["load"] == "one busy process"
    assert kept["ratios"]["second"]["estimate"] > 0
    assert len(kept["naive_ms"]) == 2
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert again.stdout == ""
