"""Images per second of training before and after each policy's cut, where the papers' training-time claims were made.

    python benchmarks/training_speed.py [--models torchvision:resnet50,torchvision:vgg16_bn] [--side 224] [--batch 128]

Generated images and labels: speed does not depend on what is learnt, only on the widths. Two epochs are trained whole
and two after the cut, by the package's own loop; the first epoch of each half warms up and is not counted. ``3sp`` cuts
by its own scores, ``epi`` by L2; ``activation-density`` makes one round at once, which near initialisation about halves
every layer. Nothing dies in so few steps of ``prunetrain``, so its threshold is set to the quantile of the weights'
largest absolute values that a third of the channels lies below: its speed, penalty included, and not what it would
keep. Writes benchmarks/results/training_speed.json.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from prune2deploy.budget.target import Budget
from prune2deploy.data.splits import DataSplits
from prune2deploy.graph.rectifiers import activations_of
from prune2deploy.graph.trace import Trace
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.pipeline.backends import MODULE, find_channels
from prune2deploy.policies.activation_density import ActivationDensity, ActivationDensityOptions
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.early import Early, EarlyOptions
from prune2deploy.policies.group_lasso import GroupLasso
from prune2deploy.policies.policy import Policy
from prune2deploy.policies.prunetrain import PruneTrain, PruneTrainOptions
from prune2deploy.policies.single_shot import SingleShot, SingleShotOptions
from prune2deploy.storage import write_json
from prune2deploy.training.history import TrainingResult
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

RESULT = Path(__file__).parent / "results" / "training_speed.json"
FLOPS = 0.33
DEAD_SHARE = 1 / 3
CLASSES = 10
AT = 2


def main() -> None:
    """Train, cut, train on; print and write images per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="torchvision:resnet50,torchvision:vgg16_bn")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="steps an epoch")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "fp16", "bf16"])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    splits = generated(arguments.side, images=arguments.batch * arguments.steps)
    recipe = TrainingRecipe(
        epochs=2 * AT,
        learning_rate=0.01,
        batch_size=arguments.batch,
        warmup_epochs=0,
        mixed_precision=arguments.mixed_precision,
    )
    rows = []
    print(f"{'network':26} {'policy':20} {'FLOPs':>6} {'before':>9} {'after':>9} {'gain':>6}   images/s")
    for name in arguments.models.split(","):
        spec = ModelSpec.parse(f"{name}?num_classes={CLASSES}")
        traced = find_channels(build_model(spec, seed=0).eval(), (splits.train[0][0][None],), backend=MODULE).traced
        plain = speeds(train(build_model(spec, seed=0), splits, recipe))
        for policy_name, make in POLICIES.items():
            model = build_model(spec, seed=0)
            row = speeds(train(model, splits, recipe, policy=make(traced, model)))
            if policy_name == "3sp":
                row |= {"before": plain["after"], "flops_fraction": row["flops_after"] / plain["flops_after"]}
            row = {"model": name, "policy": policy_name, "batch": arguments.batch, **row}
            rows.append(row)
            print(
                f"{name:26} {policy_name:20} {row['flops_fraction']:6.3f} {row['before']:9.1f} {row['after']:9.1f} "
                f"{row['after'] / row['before']:5.2f}x",
                flush=True,
            )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    write_json(arguments.out, {"device": device, "torch": torch.__version__, "side": arguments.side, "rows": rows})


def generated(side: int, *, images: int) -> DataSplits:
    """Noise with random labels."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(images, 3, side, side, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    train_split = TensorDataset(pictures, labels)
    return DataSplits(
        name="noise",
        train=train_split,
        evaluation=TensorDataset(pictures[:64], labels[:64]),
        calibration=train_split,
        class_names=tuple(map(str, range(CLASSES))),
        input_shape=(3, side, side),
    )


def speeds(result: TrainingResult) -> dict[str, Any]:
    """Images per second of the last epoch before the cut and of the last one after it, and what was left.

    A network that is cut before training has no epoch before: see ``main``, which takes that of plain training.
    """
    images = result.cost.images / len(result.history)
    before, after = result.history[AT - 1], result.history[-1]
    return {
        "before": images / before.seconds,
        "after": images / after.seconds,
        "flops_before": before.flops,
        "flops_after": after.flops,
        "flops_fraction": after.flops / before.flops,
        "batch_after": after.batch_size,
        "deciding_seconds": result.cost.seconds.get("deciding", 0.0),
        "peak_memory_bytes": result.cost.peak_memory_bytes,
    }


def _early(traced: Trace, model: torch.nn.Module) -> Policy:
    return Early(traced.graph, Aim(budget=Budget(flops=FLOPS)), EarlyOptions(criterion="l2", prune_epoch=AT))


def _single_shot(traced: Trace, model: torch.nn.Module) -> Policy:
    return SingleShot(traced.graph, Aim(budget=Budget(flops=FLOPS)), SingleShotOptions(images=32))


def _prunetrain(traced: Trace, model: torch.nn.Module) -> Policy:
    strengths = GroupLasso(traced.graph, model).strengths(model)
    options = PruneTrainOptions(interval=AT, dead_below=float(np.quantile(strengths, DEAD_SHARE)), dynamic_batch=False)
    return PruneTrain(traced.graph, Aim(), options)


def _density(traced: Trace, model: torch.nn.Module) -> Policy:
    options = ActivationDensityOptions(window=1, minimum_epochs=AT, epsilon=0.99, max_rounds=1)
    return ActivationDensity(traced.graph, Aim(), options, activations=activations_of(traced))


POLICIES: Mapping[str, Callable[[Trace, torch.nn.Module], Policy]] = {
    "epi": _early,
    "prunetrain": _prunetrain,
    "activation-density": _density,
    "3sp": _single_shot,
}


if __name__ == "__main__":
    main()
