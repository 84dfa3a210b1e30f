"""Start-up of ``p2d --help`` beside a bare Typer program of as many commands, both in fresh processes, interleaved.

    python benchmarks/startup.py [--runs 21]

Prints a table and writes benchmarks/results/startup.json. The figure to watch is the ratio: both start the same
interpreter and the same Typer on the same machine.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from prune2deploy.storage import write_json

RESULT = Path(__file__).parent / "results" / "startup.json"
BARE = """
import typer

app = typer.Typer()


def command(name: str, count: int = 1) -> None:
    '''Do nothing.'''


for number in range(9):
    app.command(name=f"command-{number}")(command)

app()
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21, help="processes of each program")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        programs = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "bare Typer --help": [sys.executable, str(bare), "--help"],
            "bare Typer C --help": [sys.executable, str(bare), "command-1", "--help"],
            "p2d --help": [sys.executable, "-m", "prune2deploy", "--help"],
            "p2d --version": [sys.executable, "-m", "prune2deploy", "--version"],
            "p2d prune --help": [sys.executable, "-m", "prune2deploy", "prune", "--help"],
        }
        seconds = measured(programs, runs=runs)
    base = statistics.median(seconds["bare Typer --help"])
    rows = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{'program':20}  {'median':>8}  {'fastest':>8}  {'to bare Typer':>13}")
    for name, median in rows.items():
        print(f"{name:20}  {median:6.3f} s  {min(seconds[name]):6.3f} s  {median / base:12.2f}x")
    write_json(
        RESULT,
        {
            "schema_version": 1,
            "python": platform.python_version(),
            "typer": metadata.version("typer"),
            "machine": f"{platform.system()} {platform.machine()}",
            "runs": runs,
            "median_seconds": rows,
            "ratio_to_bare_typer": {name: median / base for name, median in rows.items()},
            "seconds": seconds,
        },
    )
    print(f"written: {RESULT.relative_to(Path(__file__).parents[1])}")


def measured(programs: dict[str, list[str]], *, runs: int) -> dict[str, list[float]]:
    """Wall-clock seconds of each program, interleaved in random order after one round that warms caches.

    Compiled modules may be written in that round: an installed package has them.
    """
    order = random.Random(0)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(runs + 1):
        for name in order.sample(list(programs), len(programs)):
            begun = time.perf_counter()
            subprocess.run(programs[name], check=True, stdout=subprocess.DEVNULL, env=environment)
            if number > 0:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    main()
