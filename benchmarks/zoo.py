"""How much of the zoo can be pruned: one architecture of every timm model file, and torchvision's.

    python benchmarks/zoo.py --out zoo.jsonl [--only PATTERN] [--workers 1] [--seconds 180] [--no-proof]
    python benchmarks/zoo.py --out zoo.jsonl --table

Each model runs in a process of its own with limits of time and memory, and writes one line of JSON; models that
have a line already are left out, so that a run can be resumed. Half of the channels of every group go, at random.
``flops_left`` is what then remains; ``graph`` says how near the edited graph is to the gated dense model with random
weights and statistics, ``module`` (with ``--module``) the same of slicing the module itself, once the groups that its
code cannot do without are frozen.
"""

import argparse
import fnmatch
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ARCHITECTURES = Path(__file__).parent / "zoo_architectures.json"
EXACT = 1e-5


def main() -> None:
    """Run all models that have no line yet, or show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="*", help="pattern of model names (timm:resnet*)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--gigabytes", type=float, default=12.0)
    parser.add_argument("--no-proof", action="store_true", help="trace only: do not edit the graph and prove the cut")
    parser.add_argument("--module", action="store_true", help="slice the module too, and prove that")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        record = examined(
            arguments.one, gigabytes=arguments.gigabytes, prove=not arguments.no_proof, slice_module=arguments.module
        )
        print(json.dumps(record))
    elif arguments.table:
        show([json.loads(line) for line in arguments.out.read_text().splitlines()])
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """One process a model; lines are appended as they come."""
    written = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {json.loads(line)["model"] for line in written}
    names = [name for name in architectures() if name not in done and fnmatch.fnmatch(name, arguments.only)]

    def process(name: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--out", str(arguments.out), "--one", name]
        command += ["--gigabytes", str(arguments.gigabytes), *(["--no-proof"] if arguments.no_proof else [])]
        command += ["--module"] if arguments.module else []
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=arguments.seconds, check=False)
        except subprocess.TimeoutExpired:
            return {"model": name, "failure": f"took over {arguments.seconds:.0f} s"}
        if ended.returncode == 0:
            return dict(json.loads(ended.stdout.splitlines()[-1]))
        said = ended.stderr.strip().splitlines()
        return {"model": name, "failure": said[-1] if said else f"ended with {ended.returncode}"}

    with ThreadPoolExecutor(arguments.workers) as pool, arguments.out.open("a") as lines:
        for record in pool.map(process, names):
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            print(row(record), flush=True)


def architectures() -> Iterator[str]:
    """``timm:name`` and ``torchvision:name``, in a fixed order: the smallest of each timm file, all of torchvision."""
    for source, names in json.loads(ARCHITECTURES.read_text()).items():
        for name in names:
            yield f"{source}:{name}"


def built(model: str) -> tuple[Any, tuple[Any, ...]]:
    """A model with random weights, in evaluation mode, and inputs of batch 1."""
    import torch

    source, _, name = model.partition(":")
    torch.manual_seed(0)
    if source == "timm":
        import timm

        made = timm.create_model(name, pretrained=False)
        shape = made.default_cfg["input_size"]
    else:
        import torchvision

        auxiliary = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        backbone = {"weights_backbone": None} if "segmentation" in source else {}
        made = torchvision.models.get_model(name, weights=None, **auxiliary, **backbone)
        shape = VIDEO_SHAPES.get(name, (3, 16, 112, 112)) if "video" in source else (3, *SIDES.get(name, (224, 224)))
    return made.eval(), (torch.randn(1, *shape),)


SIDES = {"inception_v3": (299, 299)}
VIDEO_SHAPES = {
    "mvit_v1_b": (3, 16, 224, 224), "mvit_v2_s": (3, 16, 224, 224), "s3d": (3, 16, 224, 224),
    "swin3d_t": (3, 8, 112, 112), "swin3d_s": (3, 8, 112, 112), "swin3d_b": (3, 8, 112, 112),
}  # fmt: skip


def examined(name: str, *, gigabytes: float, prove: bool, slice_module: bool) -> dict[str, Any]:
    """The record of one model."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30), int(gigabytes * 2**30)))
    import logging
    import warnings

    import torch

    from prune2deploy.errors import P2DError
    from prune2deploy.graph.trace import export_program, trace_program

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    model, inputs = built(name)
    record: dict[str, Any] = {"model": name, "parameters": sum(one.numel() for one in model.parameters())}
    clock = time.perf_counter()
    try:
        program = export_program(model, inputs)
    except P2DError as error:
        return {**record, "exported": False, "failure": str(error)}
    record |= {"exported": True, "export_s": round(time.perf_counter() - clock, 2)}
    clock = time.perf_counter()
    traced = trace_program(model, program, sizes_are_free=True)
    graph = traced.graph
    kept = half(graph)
    record |= {
        "trace_s": round(time.perf_counter() - clock, 2),
        "nodes": len(program.graph.nodes),
        "groups": len(graph.groups),
        "channels": graph.channel_count,
        "inexact_groups": sum(not group.exact for group in graph.groups),
        "flops_left": round(graph.cost.flops(kept) / max(graph.cost.dense_flops, 1), 4),
        "parameters_left": round(graph.cost.parameters(kept) / max(graph.cost.dense_parameters, 1), 4),
        **frozen_share(graph),
    }
    if prove:
        record["graph"] = edited(traced, model, inputs, kept)
    if slice_module:
        record["module"] = sliced(trace_program(model, program), model, inputs)
    record["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return record


def half(graph: Any) -> Any:
    """The mask that keeps a random half of each group, the larger half of an odd one."""
    import numpy as np

    random = np.random.default_rng(0)
    kept = graph.everything()
    for group in graph.groups:
        kept[random.permutation(group.channels)[: len(group.channels) // 2]] = False
    return kept


def frozen_share(graph: Any) -> dict[str, Any]:
    """The share of FLOPs in operators without a single free width, and the reasons by their weights' share of them.

    A weight counts where its producing axis is frozen, with the FLOPs of its layer.
    """
    from prune2deploy.graph.channels import FROZEN
    from prune2deploy.graph.resolve import module_of

    everything = graph.everything()
    free = [bool((width != FROZEN).any()) for width in graph.cost.widths]
    sizes = graph.cost.sizes(everything)
    total = frozen = 0
    for term in graph.cost.flop_terms:
        flops = term.coefficient
        for width in term.widths:
            flops *= sizes[width]
        total += flops
        frozen += flops if not any(free[width] for width in term.widths) else 0
    layers = graph.cost.flops_by_layer(everything)
    frozen_part = {(axis.tensor, axis.dim): float((axis.channels == FROZEN).mean()) for axis in graph.axes}
    reasons: Counter[str] = Counter()
    for one in graph.frozen:
        operator = f" [{one.operator}]" if one.operator else ""
        for tensor, dim in one.axes:
            share = frozen_part.get((tensor, dim), 1.0)
            reasons[one.reason + operator] += round(share * layers.get(module_of(tensor), 0))
    return {
        "frozen_share": round(frozen / max(total, 1), 4),
        "frozen_reasons": {reason: round(flops / max(total, 1), 4) for reason, flops in reasons.most_common(6)},
    }


def edited(traced: Any, model: Any, inputs: tuple[Any, ...], kept: Any) -> dict[str, Any]:
    """Whether editing the exported graph makes the cut, and how near the result is to the gated dense model."""
    from prune2deploy.budget.from_mask import plan_from_mask
    from prune2deploy.errors import P2DError
    from prune2deploy.surgery.edit import edited_copy
    from prune2deploy.surgery.trial import randomised_copy
    from prune2deploy.surgery.verify import prove

    record: dict[str, Any] = {}
    sample = randomised_copy(model)
    try:
        clock = time.perf_counter()
        pruned = edited_copy(sample, traced, plan_from_mask(traced.graph, kept), inputs)
        record["seconds"] = round(time.perf_counter() - clock, 2)
        record["relative_error"] = prove(traced, sample, pruned, kept, inputs).relative_error
    except P2DError as error:
        record["failure"] = str(error)
    return record


def sliced(traced: Any, model: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What slicing the module gives, and whether it is proved."""
    from prune2deploy.budget.from_mask import plan_from_mask
    from prune2deploy.errors import P2DError
    from prune2deploy.surgery.apply import pruned_copy
    from prune2deploy.surgery.trial import freeze_what_breaks, randomised_copy
    from prune2deploy.surgery.verify import prove

    clock = time.perf_counter()
    record: dict[str, Any] = {}
    try:
        working = freeze_what_breaks(traced, model, inputs)
        graph = working.graph
        kept = half(graph)
        record |= {
            "groups": len(graph.groups),
            "broken_groups": len(traced.graph.groups) - len(graph.groups),
            "flops_left": round(graph.cost.flops(kept) / max(graph.cost.dense_flops, 1), 4),
        }
        sample = randomised_copy(model)
        proof = prove(working, sample, pruned_copy(sample, plan_from_mask(graph, kept)), kept, inputs)
        record |= {"relative_error": proof.relative_error}
    except P2DError as error:
        record |= {"failure": str(error)}
    return {**record, "seconds": round(time.perf_counter() - clock, 2)}


def row(record: dict[str, Any]) -> str:
    """One line of the table."""
    if "failure" in record:
        return f"{record['model']:44} {record['failure'][:110]}"
    return (
        f"{record['model']:44} {record['flops_left']:6.3f} {record['frozen_share']:6.3f} {record['groups']:5d} "
        f"{record['inexact_groups']:5d} {record['trace_s']:6.2f} s | {_proof(record.get('graph'))} | "
        f"{_proof(record.get('module'))} | "
        f"{'; '.join(f'{share:.2f} {reason}' for reason, share in list(record['frozen_reasons'].items())[:2])}"
    )


def _proof(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    left = f"{record['flops_left']:.3f} " if "flops_left" in record else ""
    return left + (f"{record['relative_error']:.0e}" if "relative_error" in record else record["failure"][:90])


def show(records: list[dict[str, Any]]) -> None:
    """The table, and what it adds up to."""
    for record in records:
        print(row(record))
    done = sorted(record["flops_left"] for record in records if "flops_left" in record)
    reasons: Counter[str] = Counter()
    for record in records:
        for reason, share in record.get("frozen_reasons", {}).items():
            reasons[reason] += round(1000 * share)
    print(f"{len(records)} models, {len(done)} traced, {sum('failure' in record for record in records)} failures")
    if done:
        print(f"FLOPs left: median {done[len(done) // 2]:.3f}, 90% {done[len(done) * 9 // 10]:.3f}")
    for way in ("graph", "module"):
        proofs = [record[way] for record in records if way in record]
        exact = sum(one.get("relative_error", 1.0) <= EXACT for one in proofs)
        print(f"cut by way of the {way} and proved: {exact} of {len(proofs)}")
    for reason, share in reasons.most_common(20):
        print(f"{share / 1000:8.2f} {reason}")


if __name__ == "__main__":
    main()
