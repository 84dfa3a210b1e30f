"""Is the measuring protocol right? On this machine, with its noise, against truths that are known.

    python benchmarks/harness.py same --comparisons 50 --work DIR
    python benchmarks/harness.py same --comparisons 50 --work DIR --load
    python benchmarks/harness.py known --comparisons 25 --reference-builds 100 --work DIR
    python benchmarks/harness.py agreement --work DIR
    python benchmarks/harness.py table

``same`` compares a network with a copy of itself, as ``p2d bench a.onnx b.onnx`` does, without or with a competing load
on the CPUs: a 95% interval should exclude 1 in 5 of 100. ``known`` compares networks that differ by about 2%, 5%, 20%
and a factor of two with a base; the truth is taken from many more builds, measured in portions between the
comparisons, and a naive script (time one, then the other) does the same beside it. ``agreement`` holds the harness to a
plain loop around the same session. Every comparison is written to benchmarks/results/harness.json when it is done, and
what is there is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness_agreement import agreement, overhead
from harness_load import KINDS, competing_load
from harness_networks import BASE_LAYERS, KNOWN, SAME_LAYERS, SMALL_LAYERS, write_chain
from harness_table import tables

from prune2deploy.bench.machine.affinity import allowed_cpus
from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.statistics.intervals import Interval
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.storage import read_json, sha256_of_file, write_json

RESULT = Path(__file__).parent / "results" / "harness.json"
ENGINE, THREADS, HALF_WIDTH = "ort-cpu", 1, 0.02
_NAIVE = Path(__file__).with_name("harness_naive.py")
_NAIVE_RUNS = 100
_REFERENCE_PORTION = 10


def main() -> None:
    """Do one part, as far as it is not done yet, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("same", "known", "agreement", "table"))
    parser.add_argument("--work", type=Path, default=Path("harness-work"), help="folder for the networks")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--comparisons", type=int, default=50)
    parser.add_argument("--reference-builds", type=int, default=100)
    parser.add_argument("--load", action="store_true", help="with a competing load on the CPUs")
    parser.add_argument("--engine", default=ENGINE, help="of the comparisons; the naive script runs ort-cpu only")
    parser.add_argument("--seconds", type=float, default=40.0, help="time of one comparison (--max-seconds)")
    arguments = parser.parse_args()
    if arguments.part == "table":
        print("\n".join(tables(read_json(arguments.out))))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    document = (
        json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"comparisons": {}, "reference": []}
    )
    document["environment"] = describe_environment(threads=THREADS, cpus=None)
    {"same": measure_same, "known": measure_known, "agreement": measure_agreement}[arguments.part](document, arguments)


def measure_same(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """A network against its copy, ``arguments.comparisons`` times."""
    first = write_chain(arguments.work / "first.onnx", SAME_LAYERS)
    second = write_chain(arguments.work / "second.onnx", SAME_LAYERS)
    cpus = len(allowed_cpus() or (0,))
    for number in range(arguments.comparisons):
        key = f"same/{'loaded' if arguments.load else 'unloaded'}/{number}"
        if key in document["comparisons"]:
            continue
        kind = KINDS[number % len(KINDS)] if arguments.load else None
        with competing_load(kind, seed=number, cpus=cpus):
            record = compare([first, second], arguments, seed=number)
        store(document, key, {"load": kind, **record}, arguments.out)


def measure_known(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Networks of known ratios, with a portion of the reference between the comparisons."""
    paths = [write_chain(arguments.work / "base.onnx", BASE_LAYERS)]
    paths += [write_chain(arguments.work / f"slower-{layers}.onnx", layers) for layers in KNOWN.values()]
    for number in range(arguments.comparisons):
        wanted = round(arguments.reference_builds * (number + 1) / arguments.comparisons)
        if wanted - len(document["reference"]) >= min(_REFERENCE_PORTION, arguments.reference_builds) or (
            number == arguments.comparisons - 1 and wanted > len(document["reference"])
        ):
            add_reference(document, paths, wanted - len(document["reference"]), arguments)
        key = f"known/{number}"
        if key not in document["comparisons"]:
            record = compare(paths, arguments, seed=1000 + number)
            store(document, key, record, arguments.out)


def add_reference(document: dict[str, Any], paths: list[Path], builds: int, arguments: argparse.Namespace) -> None:
    """Further builds of the reference, each as its medians in ns, one a network."""
    options = BenchOptions(threads=THREADS, builds=builds, seed=len(document["reference"]))
    result = run_bench(request_for(paths, arguments.engine, options))
    rows = {row.variant: row.build_medians_ns for row in result.rows}
    document["reference"] += [list(build) for build in zip(*(rows[path.stem] for path in paths), strict=True)]
    write_json(arguments.out, document)
    print(f"reference: {len(document['reference'])} builds", flush=True)


def measure_agreement(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The harness against a plain loop."""
    small = write_chain(arguments.work / "small.onnx", SMALL_LAYERS)
    base = write_chain(arguments.work / "base.onnx", BASE_LAYERS)
    document["agreement"] = {"small": agreement(small, runs=50), "base": agreement(base, runs=5)}
    document["overhead"] = overhead(small, runs=50)
    write_json(arguments.out, document)
    print(json.dumps({name: document[name] for name in ("agreement", "overhead")}, indent=2))


def compare(paths: list[Path], arguments: argparse.Namespace, *, seed: int) -> dict[str, Any]:
    """One comparison by the protocol of ``p2d bench``, and by the naive script: how much slower than the first file."""
    options = BenchOptions(threads=THREADS, half_width=HALF_WIDTH, max_seconds=arguments.seconds, seed=seed)
    result = run_bench(request_for(paths, arguments.engine, options))
    control = result.controls[0]
    rounds = result.protocol["rounds"]
    return {
        # The first file is the baseline: its speed-up over another is the inverse of that one's.
        "ratios": {
            row.variant: inverse(interval)
            for row in result.rows
            if (interval := row.speedup_against(result.baseline)) is not None
        },
        "control": {**asdict(control.interval), "passed": control.passed, "disturbed": control.disturbed},
        "builds": result.protocol["builds"],
        "builds_wanted": result.protocol["builds_wanted"],
        "half_width_reached": result.protocol["half_width_reached"],
        "rounds": sum(entry["rounds"] for entry in rounds),
        "rounds_dropped": sum(len(entry["dropped"]) for entry in rounds),
        "seconds": result.protocol["seconds"],
        "build_medians_ns": medians(result),
        "load_average": os.getloadavg()[0],
        "naive_ms": naive(paths) if arguments.engine == ENGINE else None,
    }


def request_for(paths: list[Path], engine: str, options: BenchOptions) -> BenchRequest:
    """Bare files at batch 1."""
    subjects = tuple(
        Subject(variant=path.stem, precision="fp32", onnx_path=path, sha256=sha256_of_file(path)) for path in paths
    )
    return BenchRequest(subjects=subjects, engine=engine, batches=(1,), options=options)


def medians(result: BenchResult) -> dict[str, list[float]]:
    """The figure of each build, by variant."""
    return {row.variant: list(row.build_medians_ns) for row in result.rows}


def inverse(interval: Interval) -> dict[str, float | None]:
    """The interval of the inverse ratio."""
    low, high = interval.low, interval.high
    return {
        "estimate": 1 / interval.estimate,
        "low": None if high is None else 1 / high,
        "high": None if low is None else 1 / low,
    }


def naive(paths: list[Path]) -> list[float]:
    """Mean milliseconds by a script that times one file after the other."""
    command = [sys.executable, str(_NAIVE), str(_NAIVE_RUNS), *map(str, paths)]
    found: list[float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def store(document: dict[str, Any], key: str, record: dict[str, Any], out: Path) -> None:
    """Keep one comparison and say how it went."""
    document["comparisons"][key] = record
    write_json(out, document)
    ratios = ", ".join(
        f"{name} {ratio['estimate']:.3f}" + (f" ({ratio['low']:.3f} to {ratio['high']:.3f})" if ratio["low"] else "")
        for name, ratio in record["ratios"].items()
    )
    print(
        f"{key}: {ratios}; {record['builds']} builds, {record['rounds_dropped']} of {record['rounds']} rounds dropped, "
        f"{record['seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
