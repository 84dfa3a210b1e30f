"""ResNet-50 dense, pruned (aligned and not) and plainly narrower, on every engine that runs here.

    python benchmarks/gpu_engines.py --minutes 6 --out benchmarks/results/gpu/engines.json
    python benchmarks/gpu_engines.py --network resnet18 --side 64 --engines ort-cpu,torch --batches 1 --minutes 3

Written for a machine that is there for minutes: networks are made and exported once, then one cell (an engine at a
precision) after the other is measured by ``p2d bench``'s own protocol, at about ``--seconds`` for each batch size; none
begins after ``--minutes``. What cannot be measured is a line with its reason. GPU engines also tell their time on the
device and that of copying the inputs there. ``torch-compile`` comes last, a batch size at a time, since compiling takes
longer than measuring. An engine that computes on the CPU is timed at a batch of 1 only where a GPU engine runs too.
Every record is written as it comes.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cell_process import CellProcess
from engines_cells import (
    INT8,
    engine_cell,
    engine_states,
    export_cell,
    limit_threads,
    onnx_file,
    prepare_cell,
    style_for_engine,
)
from engines_networks import EVALUATION

from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.engines.registry import all_engines, engine_named
from prune2deploy.errors import P2DError
from prune2deploy.storage import sha256_of_file, write_json

RESULT = Path(__file__).parent / "results" / "gpu_engines.json"
VARIANTS = ("dense", "pruned", "pruned-unaligned", "reduced")
_CPU_BATCHES = (1,)
_COMPILED = "torch-compile"
# How much longer it may take than the others: each variant is compiled, for seconds to a minute.
_COMPILING = 5
_BUILDS = 3
_FEWEST_SECONDS = 10.0


def main() -> None:
    """Make, export, measure what fits into the time; print and write as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", help="a name of engines_networks.py, or a model spec")
    parser.add_argument("--side", type=int, help="side of the images, the network's own unless given")
    parser.add_argument("--engines", default="all", help="these; all: every one that runs here")
    parser.add_argument("--precisions", default="fp16,fp32,int8")
    parser.add_argument("--batches", default="32,1,256")
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time of one cell")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no cell after as many")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="bundles, images and ONNX files")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    matrix = Matrix(arguments)
    try:
        matrix.run()
    finally:
        matrix.end()
    print()
    print("\n".join(table(matrix.document)))
    sys.exit(0 if any("rows" in cell for cell in matrix.document["cells"].values()) else 1)


class Matrix:
    """The measurement and its document, which is written after every record."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._begun = arguments, time.monotonic()
        self._folder: Path = arguments.work / arguments.network.replace(":", "-")
        self._process = CellProcess(limit_threads, os.cpu_count() or 1)
        # The other half is for whatever else the machine does meanwhile.
        self._cpu_threads = max(1, (os.cpu_count() or 1) // 2)
        self._agreements: dict[Path, float] = {}
        wanted = [engine.name for engine in all_engines()]
        if arguments.engines != "all":
            wanted = arguments.engines.split(",")
        states = dict(engine_states(tuple(wanted)))
        self._engines = [name for name in wanted if states[name]["runs"]]
        self.document: dict[str, Any] = {
            "schema_version": 1,
            "environment": describe_environment(threads=1, cpus=None),
            "network": {},
            "engines": states,
            "cells": {},
        }

    def run(self) -> None:
        """Everything, in the order that tells the most first."""
        for name, state in self.document["engines"].items():
            print(f"{name}: {state['device'] if state['runs'] else state['reason']}", flush=True)
        if not self._engines:
            return
        arguments = self._arguments
        network = self._ask(prepare_cell, arguments.network, self._folder, VARIANTS, arguments.side)
        self.document["network"] = network
        if "failed" in network:
            print(f"{arguments.network}: {network['failed']}")
            return
        for engine, precision, batches in self._cells():
            record = self._cell(engine, precision, batches)
            self._keep(f"{engine}/{precision}/{','.join(map(str, batches))}", record)
            if "failed" in record and len(batches) > 1 and self._seconds_left() > _FEWEST_SECONDS:
                # One batch size may be too much for it.
                for batch in batches:
                    self._keep(f"{engine}/{precision}/{batch}", self._cell(engine, precision, (batch,)))

    def end(self) -> None:
        """End the process that exports."""
        self._process.end()

    def _cells(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Engine, precision and the batch sizes that share its processes; what must be compiled first comes last."""
        batches = tuple(map(int, self._arguments.batches.split(",")))
        states = self.document["engines"]
        with_gpu = any(_on_gpu(states[engine]) for engine in self._engines)
        compiled = [engine for engine in self._engines if engine == _COMPILED]
        for engines, groups in (
            ([engine for engine in self._engines if engine != _COMPILED], [batches]),
            (compiled, [(batch,) for batch in batches]),
        ):
            for group in groups:
                for precision in self._arguments.precisions.split(","):
                    for engine in engines:
                        # Large batches take minutes on a CPU, and bring no news where there is a GPU.
                        taken = group if _on_gpu(states[engine]) or not with_gpu else _CPU_BATCHES
                        if precision in engine_named(engine).precisions:
                            yield engine, precision, taken

    def _cell(self, engine: str, precision: str, batches: tuple[int, ...]) -> dict[str, Any]:
        if self._seconds_left() < _FEWEST_SECONDS:
            return {"failed": "not begun: the time was over"}
        begun = time.monotonic()
        failure = self._exported(precision, style_for_engine(precision, engine))
        if failure is not None:
            return {"failed": f"export: {failure}"}
        costs = self.document["network"]["variants"]
        request = BenchRequest(
            subjects=tuple(self._subject(variant, precision, engine, costs) for variant in VARIANTS),
            engine=engine,
            batches=batches,
            evaluation=self._folder / EVALUATION,
            options=BenchOptions(
                threads=1 if _on_gpu(self.document["engines"][engine]) else self._cpu_threads,
                builds=_BUILDS,
                max_seconds=min(self._seconds_of(engine, batches), max(self._seconds_left(), _FEWEST_SECONDS)),
            ),
        )
        try:
            result = run_bench(request).to_document()
        except P2DError as error:
            return {"failed": " ".join(str(error).split())}
        kept = {name: result[name] for name in ("rows", "controls", "notes")}
        return {**kept, "seconds": time.monotonic() - begun}

    def _seconds_of(self, engine: str, batches: tuple[int, ...]) -> float:
        factor = _COMPILING if engine == _COMPILED else len(batches)
        return factor * float(self._arguments.seconds)

    def _subject(self, variant: str, precision: str, engine: str, costs: dict[str, Any]) -> Subject:
        path = onnx_file(self._folder, variant, precision, style_for_engine(precision, engine))
        return Subject(
            variant=variant,
            precision=precision,
            onnx_path=path,
            sha256=sha256_of_file(path),
            flops_fraction=costs[variant]["flops"] / costs["dense"]["flops"],
            parameters_fraction=costs[variant]["parameters"] / costs["dense"]["parameters"],
            bundle=self._folder / variant,
            agreement=self._agreements.get(path),
        )

    def _exported(self, precision: str, style: str | None) -> str | None:
        """Write the files of a precision that are not there; why one could not be written."""
        for variant in VARIANTS:
            if onnx_file(self._folder, variant, precision, style).is_file():
                continue
            record = self._ask(export_cell, self._folder, variant, precision, style)
            if "failed" in record:
                return f"{variant}: {record['failed']}"
            if precision == INT8:
                # What a file loses on the CPU is what it may lose on every other engine.
                compared = self._ask(engine_cell, self._folder, variant, precision, "ort-cpu", style)
                path = onnx_file(self._folder, variant, precision, style)
                self._agreements |= {path: compared["agreement"]} if "agreement" in compared else {}
        return None

    def _ask(self, function: Any, *given: Any) -> dict[str, Any]:
        return self._process.ask(function, *given, seconds=max(self._seconds_left(), _FEWEST_SECONDS))

    def _seconds_left(self) -> float:
        return 60 * float(self._arguments.minutes) - (time.monotonic() - self._begun)

    def _keep(self, key: str, record: dict[str, Any]) -> None:
        self.document["cells"][key] = record
        write_json(self._arguments.out, self.document)
        print(f"{key}: {line_of(record)}", flush=True)


def _on_gpu(state: dict[str, Any]) -> bool:
    return not str(state["device"]).startswith("CPU")


def line_of(record: dict[str, Any]) -> str:
    """One cell in a line."""
    if "failed" in record:
        return str(record["failed"])
    shown = (f"{row['variant']} {_milliseconds(row)}{_speedup(row, ' ({})')}" for row in record["rows"])
    return f"{', '.join(shown)}; {record['seconds']:.0f} s"


def table(document: dict[str, Any]) -> list[str]:
    """All cells as Markdown."""
    others = VARIANTS[1:]
    lines = [
        "| engine | precision | batch | dense | " + " | ".join(others) + " |",
        "|" + "---|" * (4 + len(others)),
    ]
    for key, record in document["cells"].items():
        engine, precision, batches = key.split("/")
        if "failed" in record:
            lines.append(f"| {engine} | {precision} | {batches} | {record['failed']} |" + " |" * len(others))
            continue
        for batch in map(int, batches.split(",")):
            rows = {row["variant"]: row for row in record["rows"] if row["batch"] == batch}
            control = next((one["passed"] for one in record["controls"] if one["batch"] == batch), None)
            dense = _milliseconds(rows["dense"]) + _aside(rows["dense"])
            dense += " (control failed)" if control is False else ""
            shown = [dense, *(_speedup(rows[name], "{}") for name in others)]
            lines.append(f"| {engine} | {precision} | {batch} | " + " | ".join(shown) + " |")
    return lines


def _milliseconds(row: dict[str, Any]) -> str:
    return f"{row['latency_ns']['p50'] / 1e6:.3g} ms"


def _aside(row: dict[str, Any]) -> str:
    """What an engine on a GPU tells beside the time of a whole run."""
    told = (("on the device", row.get("device_ns")), ("inputs to it", row.get("copy_ns")))
    shown = [f"{found['p50'] / 1e6:.3g} ms {what}" for what, found in told if found is not None]
    return f" ({', '.join(shown)})" if shown else ""


def _speedup(row: dict[str, Any], form: str) -> str:
    found = next((one for one in row["speedups"] if one["against"] == "dense"), None)
    if found is None:
        return ""
    ends = f" ({found['low']:.2f} to {found['high']:.2f})" if found["low"] is not None else ""
    return form.format(f"{found['estimate']:.2f}x{ends}")


if __name__ == "__main__":
    main()
