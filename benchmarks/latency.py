"""Pruning to half of a measured latency, against pruning to a FLOP count and against Torch-Pruning.

    python benchmarks/latency.py --work latency-work [--settings ort-cpu:1:1,openvino:1:1] [--networks resnet50]
    python benchmarks/latency.py --work latency-work --yield
    python benchmarks/latency.py --work latency-work --accuracy [--seeds 5]
    python benchmarks/latency.py --table

A setting is engine:threads:batch, 0 threads for all cores. Of each network and setting, one cell: the table is filled,
the network is cut to half of its latency, and what comes out is timed by ``p2d bench``'s own protocol in one run with
the dense network, the package's own FLOP-targeted plan (aligned, global ranking) and Torch-Pruning's global magnitude
pruning without rounding, both of the same kept importance. ``--yield``: ResNet-50 at 0.33 of the FLOPs, and cut to the
latency that this gives. ``--accuracy``: small networks on digits and textures, each plan fine-tuned alike. Cells that
are in the result already are not run again; GPU engines that run here are added to the settings. Torch-Pruning is the
extra ``peers``. Writes benchmarks/results/latency.json; its figures are in docs/latency.md.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latency_cells import Cell, Network, run_cell, setting_key
from latency_networks import NETWORKS
from latency_small import accuracy_cells, run_accuracy
from latency_table import tables
from latency_yield import run_yield

from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import P2DError
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.bench import usable_cores
from prune2deploy.storage import read_json, write_json

RESULT = Path(__file__).parent / "results" / "latency.json"
SETTINGS = ("ort-cpu:1:1", "openvino:1:1", "ort-cpu:0:1", "ort-cpu:1:16", "ort-cpu:0:16")
GPU_ENGINES = ("trt", "trt-rtx", "ort-cuda")


def main() -> None:
    """Run what is asked for and is not there yet, cell by cell, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("latency-work"), help="trained weights are kept here")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of CPU engines; empty for none")
    parser.add_argument("--untrained", action="store_true", help="random weights, where there is nothing to train on")
    parser.add_argument("--builds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--yield", dest="with_yield", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--again", action="store_true", help="run cells that are in the result already")
    parser.add_argument("--table", action="store_true", help="print the tables of the result, and run nothing")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    document: dict[str, Any] = read_json(arguments.out) if arguments.out.is_file() else {}
    document = {"schema_version": 1, "cells": {}, "yield": {}, "accuracy": {}, **document}
    if arguments.table:
        print(tables(document))
        return
    document["machine"] = describe_environment(threads=usable_cores(), cpus=None)
    if arguments.accuracy:
        for small in accuracy_cells(arguments.seeds):
            if arguments.again or small.key not in document["accuracy"]:
                document["accuracy"][small.key] = _told(small.key, run_accuracy, small, arguments.work)
                write_json(arguments.out, document)
        return
    if arguments.with_yield:
        setting = Setting(engine="ort-cpu", threads=1)
        document["yield"][setting_key(setting)] = run_yield(arguments.work, setting, builds=arguments.builds)
        write_json(arguments.out, document)
        return
    settings = [*map(_setting, filter(None, arguments.settings.split(","))), *_gpu_settings()]
    for name in arguments.networks.split(","):
        network = None
        for setting in settings:
            cell = Cell(network=name, setting=setting)
            if not arguments.again and cell.key in document["cells"]:
                continue
            network = network or Network(name, None if arguments.untrained else arguments.work)
            document["cells"][cell.key] = _told(cell.key, run_cell, cell, network, builds=arguments.builds)
            write_json(arguments.out, document)


def _setting(text: str) -> Setting:
    engine, threads, batch = text.split(":")
    return Setting(engine=engine, threads=int(threads) or usable_cores(), batch=int(batch))


def _gpu_settings() -> Iterable[Setting]:
    """Each GPU engine that runs here, at fp16 where it has that."""
    for name in GPU_ENGINES:
        engine = engine_named(name)
        if engine.availability().runs:
            precision = "fp16" if "fp16" in engine.precisions else "fp32"
            for batch in (1, 16):
                yield Setting(engine=name, precision=precision, batch=batch)


def _told(key: str, run: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
    """What a cell gave, or why it failed; also printed."""
    try:
        record: dict[str, Any] = run(*arguments, **more)
    except P2DError as error:
        record = {"error": str(error)}
    print(key, {name: value for name, value in record.items() if name in ("error", "against", "failed")}, flush=True)
    return record


if __name__ == "__main__":
    main()
