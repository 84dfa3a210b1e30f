"""The property of random networks on many examples: how many were tried, from which seed, and what failed.

    python benchmarks/property_runs.py --out benchmarks/results/property_runs.json [--examples 2000] [--seed 3]

Runs ``tests/graph/test_properties.py`` with Hypothesis on random networks, split over ``--workers`` processes that draw
from seeds of their own (networks are distinct within each; ``distinct`` counts them over all), and goes on where one
fails. The record of each example is kept beside ``--out`` while it runs; ended early, the result counts what was done.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROPERTY = "tests/graph/test_properties.py"
PACKAGES = ("torch", "hypothesis", "numpy", "scipy")


def main() -> None:
    """Run all workers, then write and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    begun = time.monotonic()
    records = [arguments.out.with_suffix(f".{worker}.jsonl") for worker in range(arguments.workers)]
    running = []
    for worker, record in enumerate(records):
        record.unlink(missing_ok=True)
        share = (arguments.examples + worker) // arguments.workers
        running.append(started(share, arguments.seed + worker, record))
    codes = [process.wait() for process in running]
    lines = [json.loads(line) for record in records if record.exists() for line in record.read_text().splitlines()]
    summary = summed(lines) | {
        "seeds": [arguments.seed + worker for worker in range(arguments.workers)],
        "seconds": round(time.monotonic() - begun),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }
    arguments.out.write_text(json.dumps(summary, indent=2) + "\n")
    for record in records:
        record.unlink(missing_ok=True)
    print(json.dumps({name: value for name, value in summary.items() if name != "blocks"}, indent=2))
    sys.exit(any(codes) or bool(summary["failures"]))


def started(examples: int, seed: int, record: Path) -> subprocess.Popen[bytes]:
    """One process of Hypothesis with a seed of its own."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "P2D_PROPERTY_EXAMPLES": str(examples),
        "P2D_PROPERTY_RECORD": str(record.resolve()),
    }
    command = [sys.executable, "-m", "pytest", "-q", PROPERTY, f"--hypothesis-seed={seed}", "--timeout=0"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def summed(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over the records of all examples; failures whole."""
    blocks = Counter(kind for line in lines for kind, _ in (*line["spec"]["images"], *line["spec"]["sequences"]))
    errors = [line["relative_error"] for line in lines if "relative_error" in line]
    return {
        "examples": len(lines),
        "distinct": len({json.dumps(line["spec"], sort_keys=True) for line in lines}),
        "failures": [line for line in lines if "failure" in line],
        "ways": dict(Counter(line.get("way", "failed") for line in lines).most_common()),
        "inexact": sum(line.get("exact") is False for line in lines),
        "largest_relative_error": max(errors, default=None),
        "blocks": dict(sorted(blocks.items())),
    }


if __name__ == "__main__":
    main()
