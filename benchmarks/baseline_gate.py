"""How often does the gate of ``p2d bench --baseline`` cry wolf, and which regressions does it find? By simulation.

    python benchmarks/baseline_gate.py

Draws the medians of builds that differ by chance alone (normal on the logarithms, dense and every variant by
themselves), twice, and lets ``bench.across.changes`` compare the two; nothing is timed. In the cells with a regression
the first of the rows is slower by it in the second measurement. Prints a table and writes
benchmarks/results/baseline_gate.json.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prune2deploy.bench.across.changes import DEFAULT_TOLERANCE, Outcome, compare_results
from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.statistics.intervals import Percentiles, builds_needed
from prune2deploy.storage import write_json

RESULT = Path(__file__).parent / "results" / "baseline_gate.json"
ROWS = (1, 6, 20)
BUILDS = (None, 5, 20)
PILOT = 5
HALF_WIDTH = 0.02
MAX_BUILDS = 100
SPREADS = (0.005, 0.01, 0.02)
REGRESSIONS = (0.0, 0.02, 0.03, 0.05)
ROWS_WITH_REGRESSION = 6


def main() -> None:
    """Simulate all cells and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=400, help="of each cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    cells = list(simulated(arguments.comparisons, seed=arguments.seed))
    print(f"{'builds':>6} {'taken':>5} {'spread':>7} {'rows':>4} {'slower by':>9} {'exit 13':>8} {'right row':>9}")
    for cell in cells:
        asked = f"{cell['builds'] or 'pilot':>6} {cell['builds_median']:>5.0f} {cell['spread']:>7.1%} {cell['rows']:>4}"
        print(f"{asked} {cell['regression']:>9.0%} {cell['alarms']:>8.1%} {cell['found']:>9.1%}")
    write_json(
        arguments.out,
        {
            "comparisons": arguments.comparisons,
            "seed": arguments.seed,
            "tolerance": DEFAULT_TOLERANCE,
            "cells": cells,
        },
    )


def simulated(comparisons: int, *, seed: int) -> Iterator[dict[str, Any]]:
    """One cell after the other: the share of comparisons that leave with 13, and that call the changed row slower."""
    for builds in BUILDS:
        for spread in SPREADS:
            for regression in REGRESSIONS:
                for rows in ROWS if not regression else (ROWS_WITH_REGRESSION,):
                    cell = Cell(builds=builds, spread=spread, rows=rows, regression=regression)
                    yield {**asdict(cell), **cell.simulated(comparisons, seed=seed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """``rows`` variants beside dense in ``builds`` builds, None for as many as a pilot of five asks for.

    ``spread`` is the standard deviation of the logarithm of each median, ``regression`` by how much the first variant
    is slower in the second measurement.
    """

    builds: int | None
    spread: float
    rows: int
    regression: float

    def simulated(self, comparisons: int, *, seed: int) -> dict[str, float]:
        """How often the gate fails, and names the row that changed; and how many builds it took."""
        numbers = [seed, self.builds or 0, round(self.spread * 1000), self.rows, round(self.regression * 100)]
        generator = np.random.default_rng(numbers)
        alarms = found = 0
        taken = []
        for _ in range(comparisons):
            comparison = compare_results(self._measured(generator), self._measured(generator, slower=self.regression))
            alarms += comparison.exit_code != 0
            found += self.regression > 0 and comparison.changes[0].outcome is Outcome.SLOWER
            taken.append(comparison.changes[0].builds_after)
        return {"alarms": alarms / comparisons, "found": found / comparisons, "builds_median": float(np.median(taken))}

    def _measured(self, generator: np.random.Generator, *, slower: float = 0.0) -> BenchResult:
        logs = self.spread * generator.standard_normal((self.rows + 1, self.builds or PILOT))
        if self.builds is None:
            dense = list(np.exp(logs[0]))
            wanted = max(builds_needed(dense, list(np.exp(row)), half_width=HALF_WIDTH) for row in logs[1:])
            further = min(wanted, MAX_BUILDS) - PILOT
            logs = np.hstack([logs, self.spread * generator.standard_normal((self.rows + 1, further))])
        medians = np.exp(logs)
        medians[1] *= 1 + slower
        names = ["dense", *(f"variant{number}" for number in range(self.rows))]
        return BenchResult(
            environment={"machine_class": "none", "threads": 1},
            protocol={"pilot_builds": PILOT if self.builds is None else None},
            baseline="dense",
            rows=tuple(_row(name, row) for name, row in zip(names, medians, strict=True)),
            claims=(),
            controls=(),
            notes=(),
        )


def _row(variant: str, medians: np.ndarray) -> Row:
    return Row(
        variant=variant,
        engine="simulated",
        precision="fp32",
        batch=1,
        latency_ns=Percentiles(p50=float(np.median(medians)), p90=None, p99=None, samples=len(medians)),
        build_medians_ns=tuple(float(median) for median in medians),
        distribution_ns=(),
        throughput_per_s=1.0,
        speedups=(),
        flops_fraction=None,
        parameters_fraction=None,
        flop_yield=None,
        accuracy=None,
        parity_max_error=None,
        file=variant,
        sha256="",
    )


if __name__ == "__main__":
    main()
