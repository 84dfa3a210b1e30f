"""Putting the weights of a checkpoint into a model, strictly: each tensor has its place, and each place its tensor."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prune2deploy.checkpoint.compare import compare
from prune2deploy.checkpoint.identify import nearest_architecture
from prune2deploy.errors import CheckpointError
from prune2deploy.model.spec import ModelSpec, training_only_prefixes
from prune2deploy.surgery.apply import named_tensors

_COUNTER = "num_batches_tracked"


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, spec: ModelSpec, where: str = "checkpoint"
) -> tuple[str, ...]:
    """Copy weights into ``model``, which was built from ``spec``, and return notes for the user.

    Strict, but for what changes no output: counters of batch normalisation that old files lack, second names of shared
    tensors, a prefix that all names of the model have and those of the file lack, and heads that serve training only
    (noted). Values are converted to the model's dtypes (noted).

    Raises:
        CheckpointError: tensors are missing, left over or of another shape. The model is unchanged.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    notes = []
    weights = dict(state_dict)
    if heads := tuple(prefix for prefix in training_only_prefixes(spec) if any(n.startswith(prefix) for n in weights)):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(heads)}
        notes += [f"{prefix}* serves training only and was left out" for prefix in heads]
    prefix = _common_prefix(needed)
    if prefix and not any(name.startswith(prefix) for name in weights):
        weights = {prefix + name: tensor for name, tensor in weights.items()}
    own = named_tensors(model)
    given = {id(own[name]) for name in weights if name in own}
    required = {
        name: shape
        for name, shape in needed.items()
        if name in weights or not (name.endswith(_COUNTER) or id(own[name]) in given)
    }
    differences = compare(expected=required, found={name: tuple(tensor.shape) for name, tensor in weights.items()})
    if differences.count:
        nearest = nearest_architecture({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
        likely = nearest and nearest.differences.count < differences.count and nearest.spec
        raise CheckpointError(
            f"does not fit {spec}: {differences}",
            where=where,
            hint=f"try --model {likely}" if likely else "pass the model it belongs to with --model",
        )
    converted = {
        f"{str(tensor.dtype).removeprefix('torch.')} to {str(own[name].dtype).removeprefix('torch.')}"
        for name, tensor in weights.items()
        if tensor.dtype != own[name].dtype
    }
    notes += [f"weights were converted from {conversion}" for conversion in sorted(converted)]
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
    return tuple(notes)


def _common_prefix(names: Mapping[str, tuple[int, ...]]) -> str:
    firsts = {name.partition(".")[0] for name in names}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""
