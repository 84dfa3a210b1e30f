"""Making the networks of ``engines_networks.py``: pruned, with sane activations, and fitted to digits."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines_networks import CALIBRATION, DATA, EVALUATION, FLOPS, NETWORKS, SUMMARY
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import prune2deploy as p2d
from prune2deploy.budget.allocate import allocate_uniform
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.checkpoint.bundle import save_bundle
from prune2deploy.data.load import load_data
from prune2deploy.data.splits import DataSplits
from prune2deploy.export.evaluation_set import make_evaluation_set
from prune2deploy.graph.trace import trace
from prune2deploy.model.spec import ModelSpec, build_model, default_input_shape
from prune2deploy.storage import read_json, write_json
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.verify import count_flops, count_parameters
from prune2deploy.training.device import placed, preferred_device
from prune2deploy.training.recalibrate import recalibrate_batchnorm

_CLASSES = 10
_NORM_IMAGES = 128
_FIT_IMAGES = 256
_BATCH = 32
# In units of the features' mean variance. Less fits 256 images better, and has rounding errors grow on the way out.
_RIDGE = 10.0
# Mobile networks are so deep that random ones amplify rounding until predictions change; near-identity blocks do not.
_RESIDUAL_SCALE = 0.2


def prepare(name: str, folder: Path, variants: tuple[str, ...], side: int | None = None, images: int = 64) -> Any:
    """Make the bundles of a network's variants, with images to evaluate and to calibrate on, and say what they cost.

    ``name`` is one of ``NETWORKS`` or a model spec; ``side`` overrules the size of its square images. Variants are
    ``dense``, ``pruned`` (0.33 of the FLOPs, aligned), ``pruned-unaligned`` and ``reduced`` (uniformly narrower to
    the FLOPs of ``pruned``). What is there already stays.
    """
    summary = folder / SUMMARY
    if summary.is_file() and set(variants) <= set(read_json(summary)["variants"]):
        return read_json(summary)
    spec = ModelSpec.parse(NETWORKS.get(name, name))
    arguments = {"num_classes": _CLASSES, **spec.arguments}
    if side is not None and spec.source == "timm" and "vit" in spec.name:
        arguments["img_size"] = side
    spec = ModelSpec(source=spec.source, name=spec.name, arguments=arguments)
    dense = build_model(spec, seed=0).eval()
    calm_residual_branches(dense)
    shape = default_input_shape(spec, dense) or (3, 224, 224)
    if side is not None:
        shape = (shape[0], side, side)
    splits = load_data(DATA, input_shape=shape, augment=False)
    image = torch.zeros(1, *shape)
    models, costs = {}, {}
    for variant, (model, plan) in _variants(dense, image, variants).items():
        recalibrate_batchnorm(model, splits.train, images=_NORM_IMAGES, batch_size=_BATCH)
        fit_last_layer(model, splits)
        normalization = splits.normalization
        save_bundle(
            folder / variant,
            model,
            spec=spec,
            plan=plan,
            input_shape=shape,
            class_names=splits.class_names,
            normalization=None if normalization is None else (normalization.mean, normalization.std),
        )
        models[variant] = model
        costs[variant] = {"flops": count_flops(model, (image,)), "parameters": count_parameters(model)}
    evaluation = make_evaluation_set(models, splits.evaluation, input_shape=shape, images=images, references=images)
    evaluation.save(folder / EVALUATION)
    np.save(folder / CALIBRATION, _stacked(splits.calibration, images)[0].numpy())
    record = {"model": str(spec), "input_shape": list(shape), "variants": costs, "rounding": _rounding(models, splits)}
    write_json(summary, record)
    return record


def calm_residual_branches(model: nn.Module) -> None:
    """Let the inverted residual blocks of mobile networks begin near the identity, as zero-initialised ones do."""
    for block in model.modules():
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        if getattr(block, "use_res_connect", False) and norms:
            nn.init.constant_(norms[-1].weight, _RESIDUAL_SCALE)


def fit_last_layer(model: nn.Module, splits: DataSplits) -> None:
    """Set the last linear layer to the ridge regression of the classes on what it reads."""
    parameters = dict(model.named_parameters())
    name = [one for one, tensor in parameters.items() if tensor.dim() == 2 and len(tensor) == _CLASSES][-1]
    weight, bias = parameters[name], parameters[name.removesuffix("weight") + "bias"]
    images, labels = _stacked(splits.train, _FIT_IMAGES)
    device = preferred_device()
    with torch.no_grad():
        # With the identity as its weight the network gives what the layer reads, edited graphs as well as modules.
        weight.data, bias.data = torch.eye(weight.shape[1]), torch.zeros(weight.shape[1])
        with placed(model, device):
            features = torch.cat([model(batch.to(device)) for batch in images.split(_BATCH)]).cpu().double()
        wanted = nn.functional.one_hot(labels, _CLASSES).double()
        centre, share = features.mean(0), wanted.mean(0)
        spread, wanted = features - centre, wanted - share
        gram = spread @ spread.T
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        solved = torch.linalg.solve(gram, wanted).T @ spread
        weight.data, bias.data = solved.float(), (share - solved @ centre).float()


def _rounding(models: dict[str, nn.Module], splits: DataSplits) -> dict[str, dict[str, float]]:
    """Relative error of torch's own copy at half precision, by variant: what a precision costs this network at best."""
    images = _stacked(splits.evaluation, _BATCH // 2)[0]
    device = preferred_device()
    errors: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for variant, model in models.items():
            reference = model(images)
            errors[variant] = {}
            for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
                half = copy.deepcopy(model).to(device, dtype)
                outputs = half(images.to(device, dtype)).cpu().float()
                errors[variant][precision] = float((outputs - reference).norm() / reference.norm())
    return errors


def _variants(dense: nn.Module, image: Tensor, names: tuple[str, ...]) -> dict[str, tuple[nn.Module, PrunePlan | None]]:
    made: dict[str, tuple[nn.Module, PrunePlan | None]] = {}
    pruned = None
    if {"pruned", "reduced"} & set(names):
        pruned = p2d.prune(dense, image, flops=FLOPS)
        made["pruned"] = pruned.model, pruned.plan
    if "pruned-unaligned" in names:
        unaligned = p2d.prune(dense, image, flops=FLOPS, align=1)
        made["pruned-unaligned"] = unaligned.model, unaligned.plan
    if "reduced" in names and pruned is not None:
        graph = trace(dense, image).graph
        plan = plan_from_mask(graph, allocate_uniform(graph, pruned.report["flops"], granule=16).kept)
        made["reduced"] = pruned_copy(dense, plan), plan
    return {name: (dense, None) if name == "dense" else made[name] for name in names}


def _stacked(dataset: Any, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` samples of a random order. Shapes: (count, C, H, W), (count,)."""
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count].tolist()
    images, labels = next(iter(DataLoader(Subset(dataset, chosen), batch_size=len(chosen))))
    return images, labels
