"""Seconds from a module to its pruned half: export, analysis, trial, cut, beside Torch-Pruning in the same run.

    python benchmarks/graph_speed.py [--models resnet50 vgg16_bn] [--repeats 3] [--out FILE]

Every network loses half of each group by magnitude (L1), on one thread. Columns: ``export`` is torch.export, ``graph``
the labelling and resolving of the exported program, ``trial`` the cut on trial that finds sizes written in the code,
``cut`` scoring and slicing; ``theirs`` is Torch-Pruning's dependency graph and its pruning of the same half (extra
``peers``; left out where it is not installed). Both are asked the same: did the pruned network run, does its output
have the dense shape, how many parameters are gone. Ours is proven too (``surgery.verify``), which is not timed.
Times are medians of the repeats, ours and theirs taken in turn. Writes benchmarks/results/graph_speed.json.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.trace import export_program, trace, trace_program
from prune2deploy.importance.criteria import criterion_named, score_channels
from prune2deploy.storage import write_json
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.equality import FORWARD_ERRORS
from prune2deploy.surgery.trial import freeze_what_breaks, randomised_copy
from prune2deploy.surgery.verify import count_parameters, prove

RESULT = Path(__file__).parent / "results" / "graph_speed.json"
MODELS = (
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg16_bn", "densenet121", "mobilenet_v2",
    "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "squeezenet1_1", "googlenet", "inception_v3",
    "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
)  # fmt: skip
CLASSES = 1000
PEER = "torch-pruning"
OURS = ("export", "graph", "trial", "cut")

Timed = TypeVar("Timed")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="torchvision architectures")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment = describe_environment(threads=1, cpus=None)
    console = Console()
    trace(nn.Sequential(nn.Conv2d(3, 8, 1)), torch.randn(1, 3, 4, 4))  # what the first export loads is no model's cost
    rows = []
    for name in arguments.models:
        rows.append(row_of(name, repeats=arguments.repeats))
        console.print(line_of(rows[-1]), highlight=False, soft_wrap=True)
    console.print(table_of(rows))
    versions = {PEER: metadata.version(PEER)} if find_spec("torch_pruning") else {}
    write_json(
        arguments.out,
        {
            "schema_version": 1,
            "environment": environment,
            "peers": versions,
            "repeats": arguments.repeats,
            "threads": 1,
            "rows": rows,
        },
    )
    console.print(f"written: {arguments.out}", highlight=False)


def row_of(name: str, *, repeats: int) -> dict[str, Any]:
    """Median seconds and outcomes of one architecture."""
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    side = 299 if name == "inception_v3" else 224
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    samples: dict[str, list[float]] = {part: [] for part in OURS}
    theirs: dict[str, list[float]] = {"graph": [], "cut": []}
    outcomes: dict[str, Any] = {}
    for _ in range(repeats):
        outcomes["ours"] = ours(model, image, samples)
        if find_spec("torch_pruning"):
            outcomes["theirs"] = peer(model, image, theirs)
    return {
        "model": name,
        "input": list(image.shape[1:]),
        "parameters": count_parameters(model),
        "ours": {**outcomes["ours"], "seconds": medians(samples), "samples": samples},
        "theirs": {**outcomes["theirs"], "seconds": medians(theirs), "samples": theirs}
        if "theirs" in outcomes
        else None,
        "proof_relative_error": proven(model, image),
    }


def ours(model: nn.Module, image: Tensor, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Trace, try, score and cut once; ``samples`` take the seconds."""
    program, export_seconds = timed(lambda: export_program(model, (image,)))
    traced, graph_seconds = timed(lambda: trace_program(model, program))
    checked, trial_seconds = timed(lambda: freeze_what_breaks(traced, model, (image,)))

    def cut() -> nn.Module:
        scores = score_channels(checked.graph, model, criterion=criterion_named("l1"))
        return pruned_copy(model, plan_from_mask(checked.graph, best_half(checked.graph, scores)))

    pruned, cut_seconds = timed(cut)
    seconds = (export_seconds, graph_seconds, trial_seconds, cut_seconds)
    for part, value in zip(OURS, seconds, strict=True):
        samples[part].append(value)
    return outcome(model, pruned, image)


def peer(model: nn.Module, image: Tensor, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Torch-Pruning, as its documentation uses it: magnitude, half of every group, the classifier ignored."""
    import torch_pruning

    copied = copy.deepcopy(model)
    classifiers = [
        module
        for module in copied.modules()
        if CLASSES in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    try:
        pruner, graph_seconds = timed(
            lambda: torch_pruning.pruner.MagnitudePruner(
                copied,
                image,
                importance=torch_pruning.importance.MagnitudeImportance(p=1),
                pruning_ratio=0.5,
                ignored_layers=classifiers,
            )
        )
        _, cut_seconds = timed(pruner.step)
    except FORWARD_ERRORS as error:
        return {"right": False, "fault": f"{type(error).__name__}: {error}".splitlines()[0]}
    samples["graph"].append(graph_seconds)
    samples["cut"].append(cut_seconds)
    return outcome(model, copied, image)


def best_half(graph: ChannelGraph, scores: np.ndarray) -> ChannelMask:
    """The mask that keeps the better half of each group."""
    kept = graph.everything()
    for group in graph.groups:
        worst_first = group.channels[np.argsort(scores[group.channels], kind="stable")]
        kept[worst_first[: len(worst_first) // 2]] = False
    return kept


def outcome(dense: nn.Module, pruned: nn.Module, image: Tensor) -> dict[str, Any]:
    """Whether the pruned network runs, gives the dense shape, and lost something."""
    left = count_parameters(pruned) / count_parameters(dense)
    try:
        with torch.no_grad():
            same_shape = pruned.eval()(image).shape == dense(image).shape
    except (RuntimeError, ValueError, IndexError) as error:
        return {"right": False, "fault": f"the pruned network fails: {error}".splitlines()[0], "parameters_left": left}
    fault = None if same_shape and left < 1 else "wrong output shape" if not same_shape else "nothing removed"
    return {"right": fault is None, "fault": fault, "parameters_left": left}


def proven(model: nn.Module, image: Tensor) -> float:
    """The relative error of our half against the gated dense network, with random weights and statistics."""
    sample = randomised_copy(model)
    traced = trace(model, image)
    kept = best_half(traced.graph, np.random.default_rng(0).random(traced.graph.channel_count))
    pruned = pruned_copy(sample, plan_from_mask(traced.graph, kept))
    return prove(traced, sample, pruned, kept, (image,)).relative_error


def timed(work: Callable[[], Timed]) -> tuple[Timed, float]:
    """What ``work`` returns, and the seconds that it took."""
    begun = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begun


def medians(samples: dict[str, list[float]]) -> dict[str, float | None]:
    """The median of each part, None where there is no sample."""
    return {part: statistics.median(values) if values else None for part, values in samples.items()}


def line_of(row: dict[str, Any]) -> str:
    """One architecture's figures, as soon as they are known."""
    return " ".join(cell.rjust(width) for cell, width in zip(cells_of(row), (20, *[9] * 10), strict=False))


def table_of(rows: list[dict[str, Any]]) -> Table:
    """All architectures."""
    table = Table(title="seconds on one thread, median; half of every group removed")
    for heading in ("model", *OURS, "sum", "left", "proof", "theirs", "left", "right"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(*cells_of(row))
    return table


def cells_of(row: dict[str, Any]) -> list[str]:
    """One row of the table: our seconds by part, their sum and parameters left, the proof, and the peer's."""
    own = row["ours"]
    cells = [row["model"], *(f"{own['seconds'][part]:.2f}" for part in OURS)]
    cells += [
        f"{sum(own['seconds'].values()):.2f}",
        f"{own['parameters_left']:.3f}",
        f"{row['proof_relative_error']:.0e}",
    ]
    theirs = row["theirs"]
    if theirs is None:
        return [*cells, "-", "-", "-"]
    seconds = theirs["seconds"]
    total = "-" if seconds["cut"] is None else f"{seconds['graph'] + seconds['cut']:.2f}"
    left = theirs.get("parameters_left")
    return [*cells, total, "-" if left is None else f"{left:.3f}", "yes" if theirs["right"] else theirs["fault"][:40]]


if __name__ == "__main__":
    main()
