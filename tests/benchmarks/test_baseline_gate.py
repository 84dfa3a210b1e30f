"""``benchmarks/baseline_gate.py``: cells hold the regression that they say, and the builds that a pilot asks for."""

from baseline_gate import MAX_BUILDS, PILOT, Cell


def test_a_large_regression_is_found_in_its_row() -> None:
    cell = Cell(builds=5, spread=0.002, rows=2, regression=0.05).simulated(10, seed=0)
    assert cell == {"alarms": 1.0, "found": 1.0, "builds_median": 5.0}


def test_a_pilot_asks_for_more_builds_where_they_differ_more() -> None:
    quiet = Cell(builds=None, spread=0.001, rows=1, regression=0.0).simulated(10, seed=0)
    noisy = Cell(builds=None, spread=0.03, rows=1, regression=0.0).simulated(10, seed=0)
    assert quiet["builds_median"] == PILOT < noisy["builds_median"] <= MAX_BUILDS
    assert quiet["alarms"] == quiet["found"] == 0.0
