"""``benchmarks/disturbed_rounds.py``: every round of a cell is counted, beside a neighbour too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "disturbed_rounds.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pins processes and reads /proc")


@pytest.mark.parametrize("load", ["none", "2 busy loops"])
def test_a_cell_counts_its_rounds_and_those_dropped(load: str) -> None:
    command = [sys.executable, str(PROGRAM), "--seconds", "0.5", "--cell", load, "1", "0.1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    cell = json.loads(answer.stdout)
    assert cell["rounds"] >= 1
    assert 0 <= cell["dropped"] <= cell["rounds"]
    assert cell["wait_share"]["0.1"] <= cell["wait_share"]["1.0"]
    assert cell["sample_ms"] > 0
    assert not cell["dropped"] or cell["reasons"]
