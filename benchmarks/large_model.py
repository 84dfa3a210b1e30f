"""Seconds and memory of finding the channels of large models, and of cutting them.

    python benchmarks/large_model.py [--analyse vit_giant_patch14_224] [--cut vit_large_patch16_224]

``--analyse``: timm architectures built on the meta device, so without weights: exported, and their channels found for
both ways to cut. ``--cut``: architectures with weights, as ``p2d prune`` treats them: channels found and cuts tried,
half of every group removed, the cut proved. Memory is the peak of the resident set of the process, each model in one of
its own on one thread; ``times_model`` is how much it grew from before the model was built, in sizes of the model: the
model itself, copies, the program, activations and all. Writes benchmarks/results/large_model.json.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "large_model.json"
GIB = 2**30


def main() -> None:
    """Measure, print, write."""
    from prune2deploy.bench.machine.environment import describe_environment
    from prune2deploy.storage import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--analyse", nargs="*", default=["vit_giant_patch14_224"], help="timm architectures, on meta")
    parser.add_argument("--cut", nargs="*", default=["vit_large_patch16_224", "resnet152"], help="with weights")
    parser.add_argument("--backend", default="auto", help="the way to cut")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    environment = describe_environment(threads=1, cpus=None)
    analysed = [alone(analysis_of, name) for name in arguments.analyse]
    cuts = [alone(cut_of, name, arguments.backend) for name in arguments.cut]
    document = {"schema_version": 1, "environment": environment, "threads": 1, "analysed": analysed, "cut": cuts}
    write_json(arguments.out, document)
    print(f"written: {arguments.out}")


def alone(work: Callable[..., dict[str, Any]], *arguments: str) -> dict[str, Any]:
    """A row, measured in a process of its own and printed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        row = process.submit(work, *arguments).result()
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def analysis_of(name: str) -> dict[str, Any]:
    """Export and channels of a model without weights."""
    torch = _quiet_torch()
    from timm import create_model

    from prune2deploy.graph.trace import export_program, trace_program

    before = _resident_peak()
    with torch.device("meta"):
        model = create_model(name).eval()
        image = torch.randn(1, *model.default_cfg["input_size"])
    begun = time.perf_counter()
    program = export_program(model, (image,))
    exported = time.perf_counter()
    graph = trace_program(model, program).graph
    sliced = time.perf_counter()
    trace_program(model, program, sizes_are_free=True)
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "groups": len(graph.groups),
        "channels": graph.channel_count,
        "export_s": round(exported - begun, 2),
        "analysis_module_s": round(sliced - exported, 2),
        "analysis_graph_s": round(time.perf_counter() - sliced, 2),
        "peak_gib": round(_resident_peak() / GIB, 2),
        "peak_before_gib": round(before / GIB, 2),
    }


def cut_of(name: str, backend: str) -> dict[str, Any]:
    """Channels found, cuts tried, half of every group removed and proved, of a model with weights."""
    torch = _quiet_torch()
    from timm import create_model

    from prune2deploy.budget.from_mask import plan_from_mask
    from prune2deploy.pipeline.backends import find_channels
    from prune2deploy.surgery.verify import prove

    before = _resident_peak()
    model = create_model(name).eval()
    inputs = (torch.randn(1, *model.default_cfg["input_size"], generator=torch.Generator().manual_seed(0)),)
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    begun = time.perf_counter()
    channels = find_channels(model, inputs, backend=backend)
    found, found_peak = time.perf_counter(), _resident_peak()
    kept = channels.graph.everything()
    for group in channels.graph.groups:
        kept[group.channels[1::2]] = False
    pruned = channels.cut(model, plan_from_mask(channels.graph, kept))
    cut, cut_peak = time.perf_counter(), _resident_peak()
    proof = prove(channels.traced, model, pruned, kept, inputs)
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "backend": channels.backend,
        "flops_left": round(proof.flops / channels.graph.cost.dense_flops, 4),
        "relative_error": proof.relative_error,
        "find_s": round(found - begun, 2),
        "cut_s": round(cut - found, 2),
        "prove_s": round(time.perf_counter() - cut, 2),
        "model_gib": round(size / GIB, 3),
        "peak_gib": round(_resident_peak() / GIB, 2),
        "find_times_model": round((found_peak - before) / size, 2),
        "cut_times_model": round((cut_peak - before) / size, 2),
        "times_model": round((_resident_peak() - before) / size, 2),
    }


def _quiet_torch() -> Any:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import torch
    from torch import nn

    from prune2deploy.graph.trace import trace

    torch.set_num_threads(1)
    trace(nn.Sequential(nn.Conv2d(3, 8, 1)), torch.randn(1, 3, 4, 4))  # what the first export loads is no model's cost
    return torch


def _resident_peak() -> int:
    """The largest resident set so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    main()
