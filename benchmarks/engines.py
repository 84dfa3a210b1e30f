"""Every precision on every engine, dense and pruned: seven networks, exported, built, and run where they can be.

    python benchmarks/engines.py --work engines-work                     # what is not done yet
    python benchmarks/engines.py --networks resnet18 --precisions int8 --engines ort-cpu --again all
    python benchmarks/engines.py --speed                                 # int8 against fp32, ResNet-18, interleaved
    python benchmarks/engines.py --table                                 # the tables, from the committed JSON

One cell is one ONNX file on one engine: ``tensorrt-rtx`` builds it, with no GPU needed, and ``ort-cpu`` and
``openvino`` run it and are compared with torch's fp32 outputs. A cell that fails is recorded with its one-line error,
and the next one goes on; every record is written as it comes, so that the same command goes on where it was stopped.
The networks are classifiers of digits made without training (``engines_networks.py``); ``pruned`` keeps 0.33 of the
FLOPs. The table has relative errors, marked "(over)" where they are over the gate of ``p2d export``, beside those of
torch's own copy at that precision, and for int8 the agreement with fp32's predictions and the signal-to-quantisation-
noise ratio; then the precisions that the layers really compute in, by share of the FLOPs. Writes
benchmarks/results/engines.json.
"""

import argparse
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cell_process import CellProcess
from engines_cells import (
    engine_cell,
    engine_states,
    export_cell,
    limit_threads,
    onnx_file,
    prepare_cell,
    style_for_engine,
)
from engines_networks import NETWORKS
from engines_table import line_of, tables

from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.engines.engine import PRECISIONS
from prune2deploy.storage import read_json, write_json

RESULT = Path(__file__).parent / "results" / "engines.json"
ENGINES = ("ort-cpu", "openvino", "trt-rtx")
VARIANTS = ("dense", "pruned")
SPEED_NETWORK = "resnet18"
SPEED_ENGINES = ("ort-cpu", "openvino")


def main() -> None:
    """Run what is asked for and not yet done, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("engines-work"), help="bundles, images and ONNX files")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="these names, or model specs")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--side", type=int, help="side of the images, the network's own unless given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="networks at once")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of one cell")
    parser.add_argument("--again", choices=["failed", "all"], help="also cells whose record is of a failure, or any")
    parser.add_argument("--speed", action="store_true", help="time int8 against fp32 instead, alone on the machine")
    parser.add_argument("--builds", type=int, default=5, help="with --speed: fresh processes")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    results = Results(arguments.out)
    if arguments.speed:
        from engines_speed import time_int8

        for engine in SPEED_ENGINES:
            results.keep_speed(engine, time_int8(SPEED_NETWORK, engine, arguments))
    elif not arguments.table:
        results.describe(tuple(arguments.engines.split(",")))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            networks = [NetworkCells(name, arguments, results) for name in arguments.networks.split(",")]
            list(pool.map(NetworkCells.run, networks))
    for lines in tables(results.document):
        print("\n".join(lines), end="\n\n")


class Results:
    """The result document, written whole after every record; threads may keep records at the same time."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        begun = {"schema_version": 1, "environment": {}, "engines": {}, "networks": {}, "cells": {}, "speed": {}}
        self.document: dict[str, Any] = read_json(path) if path.is_file() else begun

    def describe(self, engines: tuple[str, ...]) -> None:
        """Record the machine and its engines."""
        states = {**self.document["engines"], **engine_states(engines)}
        environment = describe_environment(threads=os.cpu_count() or 1, cpus=None)
        self._keep({"environment": environment, "engines": states})

    def keep_network(self, name: str, record: dict[str, Any]) -> None:
        """What the variants of a network cost."""
        self._keep({"networks": {**self.document["networks"], name: record}})

    def keep_cell(self, key: str, record: dict[str, Any]) -> None:
        """The record of one cell, shown as it comes."""
        self._keep({"cells": {**self.document["cells"], key: record}})
        print(f"{key}: {line_of(record)}", file=sys.stderr, flush=True)

    def keep_speed(self, engine: str, record: dict[str, Any]) -> None:
        """How much faster int8 is on one engine."""
        self._keep({"speed": {**self.document["speed"], engine: record}})

    def wants(self, key: str, *, again: str | None) -> bool:
        """Whether a cell is still to be run; ``again`` is "all", "failed" or None."""
        record = self.document["cells"].get(key)
        return record is None or again == "all" or (again == "failed" and "failed" in record)

    def _keep(self, part: dict[str, Any]) -> None:
        with self._lock:
            self.document |= part
            write_json(self._path, self.document)


class NetworkCells:
    """All cells of one network, one after the other, in a process that is begun anew when one kills it."""

    def __init__(self, name: str, arguments: argparse.Namespace, results: Results) -> None:
        self._name, self._arguments, self._results = name, arguments, results
        self._folder = arguments.work / re.sub(r"[^\w.-]+", "-", name)
        self._process = CellProcess(limit_threads, max(1, (os.cpu_count() or 1) // arguments.jobs))
        self._exported: set[str] = set()

    def run(self) -> None:
        """Run what has no record yet. A failure is a record, and the next cell goes on."""
        cells = [cell for cell in self._cells() if self._results.wants(self._key(*cell), again=self._arguments.again)]
        if not cells:
            return
        try:
            network = self._ask(prepare_cell, self._name, self._folder, VARIANTS, self._arguments.side)
            self._results.keep_network(self._name, network)
            for variant, precision, engine in cells:
                record = {"failed": f"the network was not made: {network['failed']}"} if "failed" in network else None
                record = record or self._record(variant, precision, engine)
                self._results.keep_cell(self._key(variant, precision, engine), record)
        finally:
            self._process.end()

    def _record(self, variant: str, precision: str, engine: str) -> dict[str, Any]:
        style = style_for_engine(precision, engine)
        exported = self._file(variant, precision, style)
        if "failed" in exported:
            return {"failed": f"export: {exported['failed']}"}
        return self._ask(engine_cell, self._folder, variant, precision, engine)

    def _file(self, variant: str, precision: str, style: str | None) -> dict[str, Any]:
        """The record of the ONNX file that a cell needs, which is written unless it is there."""
        key = self._key(variant, precision, f"onnx-{style}" if style else "onnx")
        missing = not onnx_file(self._folder, variant, precision, style).is_file()
        if key not in self._exported and (missing or self._results.wants(key, again=self._arguments.again)):
            self._exported.add(key)
            self._results.keep_cell(key, self._ask(export_cell, self._folder, variant, precision, style))
        record: dict[str, Any] = self._results.document["cells"][key]
        return record

    def _cells(self) -> list[tuple[str, str, str]]:
        precisions, engines = self._arguments.precisions.split(","), self._arguments.engines.split(",")
        return [(variant, precision, engine) for variant in VARIANTS for precision in precisions for engine in engines]

    def _key(self, *parts: str) -> str:
        return "/".join((self._name, *parts))

    def _ask(self, function: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        return self._process.ask(function, *given, seconds=self._arguments.seconds)


if __name__ == "__main__":
    main()
