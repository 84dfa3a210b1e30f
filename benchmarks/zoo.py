"""How much of the zoo is pruned, and rightly: an architecture of every timm model file, and torchvision's.

    python benchmarks/zoo.py [--only PATTERN] [--again] [--seconds 240] [--gigabytes 12] [--out FILE]
    python benchmarks/zoo.py --table [--out FILE]

Half of the channels of every group go, at random. Each network is examined in a process of its own with limits of time
and memory, and so is Torch-Pruning beside it (extra ``peers``; left out where it is not installed). Every record is
written as it comes, so that a run can be broken off and resumed; ``--again`` renews records.

Columns: ``cut``, by slicing modules or by editing the graph; the shares of FLOPs and parameters that are left; the
share of the FLOPs in layers that cannot become narrower, and the first cause; ``error``, ‖y − ref‖/‖ref‖ between the
pruned network and the gated dense one, with random weights and statistics, over all outputs; seconds inside
``torch.export`` and seconds of everything else from a module to its half (the proof is not timed), on one thread;
``memory``, the peak while that happens over the size of the network. Torch-Pruning is right where it ran, the output
has the shape of before and something was removed.
"""

import argparse
import fnmatch
import json
import logging
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo_networks import architectures, built
from zoo_table import TOOK_OVER, line_of, table_of

from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.errors import P2DError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.frozen import frozen_flops
from prune2deploy.pipeline.backends import find_channels
from prune2deploy.storage import write_json
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import count_parameters, prove

RESULT = Path(__file__).parent / "results" / "zoo.json"
CLASSES = 1000
PEER = "torch-pruning"
SHOWN_REASONS = 3
Record = dict[str, Any]


def main() -> None:
    """Examine all networks that have no record yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="pattern of network names (timm:resnet*)")
    parser.add_argument("--again", action="store_true", help="also networks that have a record")
    parser.add_argument("--alone", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--seconds", type=float, default=240.0, help="limit for each process")
    parser.add_argument("--gigabytes", type=float, default=12.0, help="limit for each process")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="print what is recorded as Markdown")
    arguments = parser.parse_args()
    records: dict[str, Record] = {}
    if arguments.out.exists():
        records = {record["model"]: record for record in json.loads(arguments.out.read_text())["networks"]}
    if arguments.table:
        print("\n".join(table_of(list(records.values()))))
        return
    for package in ("timm", "torchvision", "torch_pruning", "torch._dynamo"):  # processes need not load them again
        if package.startswith("torch.") or find_spec(package):
            import_module(package)
    for name in architectures():
        if not fnmatch.fnmatch(name, arguments.only) or (name in records and not arguments.again):
            continue
        limits = {"seconds": arguments.seconds, "gigabytes": arguments.gigabytes}
        records[name] = {"model": name, "limits": limits, "ours": limited(ours, name, arguments)}
        if find_spec("torch_pruning") and not arguments.alone:
            records[name]["theirs"] = limited(theirs, name, arguments)
        print(line_of(records[name]), flush=True)
        write_json(
            arguments.out,
            {
                "schema_version": 1,
                "environment": describe_environment(threads=1, cpus=None),
                "packages": {one: metadata.version(one) for one in ("timm", "torchvision", PEER) if find_spec_of(one)},
                "networks": [records[one] for one in architectures() if one in records],
            },
        )


def find_spec_of(package: str) -> bool:
    """Whether a distribution is installed."""
    return find_spec(package.replace("-", "_")) is not None


def warm_up() -> None:
    """Load all that both sides load when they are first used, so that no network pays for it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    small = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    image = torch.randn(1, 3, 8, 8)
    for backend in ("module", "graph"):
        halved(small, (image,), backend=backend)
    if find_spec("torch_pruning"):
        peer_pruned(small, image)


def limited(examine: Callable[[str], Record], name: str, arguments: argparse.Namespace) -> Record:
    """What ``examine`` says of a network, in a process that is ended when it takes too much."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        size = int(arguments.gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        try:
            warm_up()  # not before the fork, which torch's pools of threads would not survive
            sender.send(examine(name))
        except MemoryError:
            sender.send({"failure": f"{TOOK_OVER} {arguments.gigabytes:.0f} GB"})
        except Exception as error:  # noqa: BLE001  # whatever stops one network is that network's record
            memory = "can't allocate memory" in str(error)
            said = f"{TOOK_OVER} {arguments.gigabytes:.0f} GB" if memory else f"{type(error).__name__}: {error}"
            sender.send({"failure": said.splitlines()[0][:200]})

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    sender.close()
    if not receiver.poll(arguments.seconds):
        process.kill()
        process.join()
        return {"failure": f"{TOOK_OVER} {arguments.seconds:.0f} s"}
    try:
        record: Record = receiver.recv()
    except EOFError:
        process.join()
        return {"failure": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return record


def ours(name: str) -> Record:
    """The record of one network: from the module to its proven half."""
    model, inputs = built(name)
    record: Record = {"parameters": count_parameters(model)}
    with peak_memory() as memory, export_timed() as exports:
        begun = time.perf_counter()
        try:
            channels, kept, _ = halved(model, inputs)
        except P2DError as error:
            return record | {"exported": bool(exports), "failure": str(error)}
        total = time.perf_counter() - begun
    graph = channels.graph
    dense_flops = max(graph.cost.dense_flops, 1)
    frozen = frozen_flops(graph)
    record |= {
        "backend": channels.backend,
        "notes": list(channels.notes),
        "exported": True,
        "seconds_exporting": round(sum(exports), 3),
        "seconds_besides": round(total - sum(exports), 3),
        "memory_of_model": round(1 + memory["bytes"] / max(size_of(model), 1), 2),
        "size_mb": round(size_of(model) / 2**20, 1),
        "nodes": len(channels.traced.program.graph.nodes),
        "groups": len(graph.groups),
        "channels": graph.channel_count,
        "inexact_groups": sum(not group.exact for group in graph.groups),
        "flops_left": round(graph.cost.flops(kept) / dense_flops, 4),
        "parameters_left": round(graph.cost.parameters(kept) / max(graph.cost.dense_parameters, 1), 4),
        "frozen_share": round(sum(frozen.values()) / dense_flops, 4),
        "frozen": [
            {"reason": reason, "operator": operator, "share": round(flops / dense_flops, 4)}
            for (reason, operator), flops in list(frozen.items())[:SHOWN_REASONS]
        ],
    }
    sample = randomised_copy(model, inputs=inputs)
    try:
        proof = prove(channels.traced, sample, channels.cut(sample, plan_from_mask(graph, kept)), kept, inputs)
    except P2DError as error:
        return record | {"failure": str(error)}
    return record | {"relative_error": proof.relative_error}


def halved(model: nn.Module, inputs: tuple[Tensor, ...], *, backend: str = "auto") -> Any:
    """The channels, the mask of a random half of each group, and the pruned network."""
    channels = find_channels(model, inputs, backend=backend)
    kept = half(channels.graph)
    return channels, kept, channels.cut(model, plan_from_mask(channels.graph, kept))


def half(graph: ChannelGraph) -> ChannelMask:
    """The mask that keeps a random half of each group, the larger half of an odd one."""
    random = np.random.default_rng(0)
    kept = graph.everything()
    for group in graph.groups:
        kept[random.permutation(group.channels)[: len(group.channels) // 2]] = False
    return kept


def theirs(name: str) -> Record:
    """Torch-Pruning in its generic use: magnitude, half of every group, the classifier ignored."""
    model, (image,) = built(name)
    with torch.no_grad():
        before = shapes_of(model(image))
    dense = count_parameters(model)
    with peak_memory() as memory:
        begun = time.perf_counter()
        peer_pruned(model, image)
        seconds = time.perf_counter() - begun
    record: Record = {
        "seconds": round(seconds, 3),
        "memory_of_model": round(1 + memory["bytes"] / max(size_of(model), 1), 2),
        "parameters_left": round(count_parameters(model) / dense, 4),
    }
    try:
        with torch.no_grad():
            after = shapes_of(model.eval()(image))
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        return record | {"failure": f"the pruned network fails: {error}".splitlines()[0][:200]}
    if after != before:
        return record | {"failure": "wrong output shape"}
    return record if record["parameters_left"] < 1 else record | {"failure": "nothing removed"}


def peer_pruned(model: nn.Module, image: Tensor) -> None:
    """Prune ``model`` in place."""
    import torch_pruning

    torch_pruning.pruner.MagnitudePruner(
        model,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[
            module
            for module in model.modules()
            if CLASSES in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
        ],
    ).step()


def shapes_of(outputs: Any) -> list[tuple[int, ...]]:
    """The shapes of all tensors among nested outputs."""
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [tuple(one.shape) for one in leaves if isinstance(one, Tensor)]


def size_of(model: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    return sum(one.numel() * one.element_size() for one in [*model.parameters(), *model.buffers()])


@contextmanager
def export_timed() -> Iterator[list[float]]:
    """The seconds of each ``torch.export.export`` that succeeds."""
    original = torch.export.export
    seconds: list[float] = []

    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        program = original(*arguments, **options)
        seconds.append(time.perf_counter() - begun)
        return program

    torch.export.export = timed
    try:
        yield seconds
    finally:
        torch.export.export = original


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """``bytes`` is by how much the resident memory rose at most, above what it was at the beginning (Linux)."""
    found = {"bytes": 0}
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    try:
        yield found
    finally:
        found["bytes"] = max(resident("VmHWM") - before, 0)


def resident(field: str) -> int:
    """A field of this process's memory status, in bytes."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


if __name__ == "__main__":
    main()
