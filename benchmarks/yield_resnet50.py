"""How much of the FLOPs that pruning removes is paid out as time: ResNet-50 at 0.33 of the FLOPs on ONNX Runtime.

    python benchmarks/yield_resnet50.py [--threads 1] [--batch 1] [--builds 5]

Times, interleaved in one run of ``p2d bench``'s own protocol: the dense network, ours (global ranking and per-layer,
aligned to 16; global without alignment), the plainly narrower one, and, where torch-pruning is installed (extra
``peers``), Torch-Pruning's uniform and global magnitude pruning without rounding and rounded to 16. Yield is the
measured speed-up times the FLOPs kept: 1 means that every FLOP removed was paid out as time. Weights are
random: speed does not depend on them, only on the widths, which for the global ranking do. Writes
benchmarks/results/yield_resnet50.json.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import prune2deploy as p2d
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.budget.allocate import allocate_uniform
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.graph.trace import trace
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.storage import write_json
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.verify import count_flops, count_parameters

RESULT = Path(__file__).parent / "results" / "yield_resnet50.json"
INPUT_SHAPE = (3, 224, 224)
FLOPS = 0.33


def main() -> None:
    """Prune, export, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--builds", type=int, default=5)
    parser.add_argument("--engine", default="ort-cpu")
    parser.add_argument("--model", default="torchvision:resnet50", help="any model spec of 3x224x224 inputs")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()

    dense = build_model(ModelSpec.parse(arguments.model), seed=0).eval()
    image = torch.randn(1, *INPUT_SHAPE)
    dense_flops, dense_parameters = count_flops(dense, (image,)), count_parameters(dense)
    with tempfile.TemporaryDirectory() as folder:
        subjects = []
        for name, model in variants(dense, image).items():
            exported = export_onnx(model, Path(folder) / f"{name}.onnx", input_shape=INPUT_SHAPE)
            subjects.append(
                Subject(
                    variant=name,
                    precision="fp32",
                    onnx_path=exported.path,
                    sha256=exported.sha256,
                    flops_fraction=count_flops(model, (image,)) / dense_flops,
                    parameters_fraction=count_parameters(model) / dense_parameters,
                )
            )
            print(f"exported {name}: {subjects[-1].flops_fraction:.3f} of the FLOPs", flush=True)
        request = BenchRequest(
            subjects=tuple(subjects),
            engine=arguments.engine,
            batches=(arguments.batch,),
            options=BenchOptions(threads=arguments.threads, builds=arguments.builds),
        )
        result = run_bench(request)
    print(f"{'variant':28} {'FLOPs':>6} {'median':>9} {'speed-up':>9} {'interval':>15} {'yield':>6}")
    for row in result.rows:
        speedup = row.speedup_against("dense")
        interval = f"{speedup.low:.2f} to {speedup.high:.2f}" if speedup and speedup.low and speedup.high else ""
        print(
            f"{row.variant:28} {row.flops_fraction or 1:6.3f} {row.latency_ns.p50 / 1e6:6.1f} ms "
            f"{speedup.estimate if speedup else 1:8.2f}x {interval:>15} {row.flop_yield or 1:6.2f}"
        )
    for control in result.controls:
        print(f"A/A control: {control.interval.estimate:.3f} ({'passed' if control.passed else 'FAILED'})")
    write_json(arguments.out, {"model": arguments.model, "target_flops": FLOPS, **result.to_document()})
    print(f"written: {arguments.out.name}")


def variants(dense: nn.Module, image: torch.Tensor) -> dict[str, nn.Module]:
    """Everything that is compared, ``dense`` first; Torch-Pruning's only where it is installed."""
    ours = p2d.prune(dense, image, flops=FLOPS, seed=0)
    graph = trace(dense, image).graph
    uniform = allocate_uniform(graph, ours.report["flops"], granule=16)
    made: dict[str, nn.Module] = {
        "dense": dense,
        "ours-global-aligned": ours.model,
        "ours-per-layer-aligned": p2d.prune(dense, image, flops=FLOPS, ranking="per-layer").model,
        "ours-global-unaligned": p2d.prune(dense, image, flops=FLOPS, align=1).model,
        "reduced": pruned_copy(dense, plan_from_mask(graph, uniform.kept)),
    }
    if find_spec("torch_pruning") is not None:
        for name, choices in {
            "torch-pruning-uniform": {},
            "torch-pruning-uniform-round16": {"round_to": 16},
            "torch-pruning-global": {"global_pruning": True},
        }.items():
            made[name] = torch_pruned(dense, image, **choices)
    return made


def torch_pruned(dense: nn.Module, image: torch.Tensor, **choices: object) -> nn.Module:
    """Torch-Pruning's magnitude pruning at the channel ratio whose FLOPs come nearest to the target, by bisection.

    It has no FLOP target of its own; its users search for the ratio in the same way.
    """
    import torch_pruning

    def at(ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            image,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)],
            **choices,
        )
        pruner.step()
        return model.eval()

    return _nearest(at, wanted=FLOPS * count_flops(dense, (image,)), image=image)


def _nearest(at: Callable[[float], nn.Module], *, wanted: float, image: torch.Tensor) -> nn.Module:
    low, high = 0.0, 0.95
    best = at(high)
    for _ in range(8):
        middle = (low + high) / 2
        model = at(middle)
        flops = count_flops(model, (image,))
        if abs(flops - wanted) < abs(count_flops(best, (image,)) - wanted):
            best = model
        low, high = (middle, high) if flops > wanted else (low, middle)
    return best


if __name__ == "__main__":
    main()
