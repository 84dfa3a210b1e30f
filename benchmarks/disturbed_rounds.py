"""How often are rounds dropped on this machine, when it is quiet and beside busy neighbours?

    python benchmarks/disturbed_rounds.py --seconds 20

Four sessions of ONNX Runtime take turns in rounds as ``p2d bench`` has them, pinned to one CPU or on all, while other
processes compute. Only signals are read: nothing is timed. What others took of the used CPUs is told of each cell:
without a load, dropped rounds are false alarms only if that was next to nothing. Prints a table and writes
benchmarks/results/disturbed_rounds.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness_networks import CHANNELS, SIZE, write_chain

from prune2deploy.bench.machine.affinity import allowed_cpus
from prune2deploy.bench.machine.disturbance import disturbed_rounds
from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.bench.machine.signals import SignalReader
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.registry import engine_named
from prune2deploy.storage import write_json

RESULT = Path(__file__).parent / "results" / "disturbed_rounds.json"
LAYERS = (20, 24, 28, 20)
LOADS = {
    "none": (0, 0),
    "1 at the lowest priority": (1, 19),
    "1 busy loop": (1, 0),
    "2 busy loops": (2, 0),
    "4 busy loops": (4, 0),
}
_LOOP = "print(flush=True)\nwhile True: pass"


def main() -> None:
    """Measure all cells, each in a process of its own, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each cell")
    parser.add_argument("--round-seconds", type=float, nargs="+", default=[0.1, 0.2, 0.5, 1.0, 2.0])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        load, threads, round_seconds = arguments.cell
        print(json.dumps(_measure(load, int(threads), float(round_seconds), arguments.seconds)))
        return
    cells = []
    for threads in dict.fromkeys((1, len(allowed_cpus() or (0,)))):
        for load in LOADS:
            for round_seconds in arguments.round_seconds:
                options = ["--seconds", str(arguments.seconds), "--cell", load, str(threads), str(round_seconds)]
                command = [sys.executable, __file__, *options]
                answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                cells.append(json.loads(answer.splitlines()[-1]))
                print(_line(cells[-1]), flush=True)
    write_json(arguments.out, {"environment": describe_environment(threads=1, cpus=None), "cells": cells})


def _measure(load: str, threads: int, round_seconds: float, seconds: float) -> dict[str, Any]:
    """Rounds of one kind beside one load."""
    cpus = sorted(allowed_cpus() or (0,))
    pinned = cpus[:threads] if threads < len(cpus) else None
    with tempfile.TemporaryDirectory() as folder, _neighbours(*LOADS[load]):
        if pinned is not None:
            os.sched_setaffinity(0, pinned)
        engine, options = (
            engine_named("ort-cpu"),
            BuildOptions(precision="fp32", batches=(1,), threads=threads, cache=None),
        )
        sessions = []
        for number, layers in enumerate(LAYERS):
            sessions.append(engine.build(write_chain(Path(folder) / f"{number}.onnx", layers), options))
            image = np.random.default_rng(number).standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)
            sessions[-1].bind({"input": image})
            sessions[-1].run()
        reader = SignalReader(pinned, gpu=False)
        signals, took = [reader.sample()], []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for session in sessions:
                stop = time.monotonic() + round_seconds / len(sessions)
                while time.monotonic() < stop:
                    session.run()
            begun = time.perf_counter()
            signals.append(reader.sample())
            took.append(time.perf_counter() - begun)
    dropped = disturbed_rounds(signals, cpus=threads)
    return {
        "load": load,
        "threads": threads,
        "pinned": pinned is not None,
        "round_seconds": round_seconds,
        "rounds": len(signals) - 1,
        "dropped": len(dropped),
        "wait_share": _quantiles([_share(*pair, "run_delay_longest_seconds") for pair in pairwise(signals)]),
        "steal_share": _quantiles([_share(*pair, "steal_longest_seconds") for pair in pairwise(signals)]),
        "other_share": round(_share(signals[0], signals[-1], "other_cpu_seconds") / threads, 5),
        "reasons": sorted({reason.split()[0] for reason in dropped.values()}),
        "sample_ms": median(took) * 1000,
    }


@contextmanager
def _neighbours(count: int, niceness: int) -> Iterator[None]:
    command = ["nice", "-n", str(niceness), sys.executable, "-S", "-c", _LOOP]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _share(first: Mapping[str, float | None], last: Mapping[str, float | None], name: str) -> float:
    return (last[name] - first[name]) / (last["at_seconds"] - first["at_seconds"])


def _quantiles(shares: Sequence[float]) -> dict[str, float]:
    return {str(q): round(float(np.quantile(shares, q)), 5) for q in (0.1, 0.5, 0.9, 1.0)}


def _line(cell: Mapping[str, Any]) -> str:
    waits, steal = (
        " ".join(f"{value:6.2%}" for value in cell[name].values()) for name in ("wait_share", "steal_share")
    )
    return (
        f"{cell['threads']} threads {'pinned' if cell['pinned'] else 'on all':6}  {cell['load']:24}  "
        f"rounds of {cell['round_seconds']:3.1f} s: {cell['dropped']:3} of {cell['rounds']:3} dropped; others "
        f"{cell['other_share']:6.1%}; waits{waits} (p10, p50, p90, most); steal{steal}; "
        f"sample {cell['sample_ms']:.2f} ms"
    )


if __name__ == "__main__":
    main()
