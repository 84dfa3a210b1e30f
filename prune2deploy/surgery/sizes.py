"""The sizes that modules keep as attributes, after their tensors were sliced. One line registers a kind of module.

The rules for groups are those of the channel graph: a plan removes whole convolution groups (all of their outputs) or
the same number of positions in each group. Source: design, "The channel graph".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prune2deploy.errors import ProofError

Attributes = dict[str, int | tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCut:
    """A module whose tensors are about to be replaced.

    ``shapes``: the new shapes of its own tensors by attribute name. ``kept``: the dense indices that stay, by
    (attribute, dimension), where some leave. ``where`` is its path in the model.
    """

    module: nn.Module
    where: str
    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[tuple[str, int], tuple[int, ...]]

    def dense(self, attribute: str) -> int:
        """The size that the dense module keeps under ``attribute``."""
        return int(getattr(self.module, attribute))

    def first_size(self, *names: str) -> int:
        """The new length of the first of these tensors that the module has."""
        return next(self.shapes[name][0] for name in names if name in self.shapes)


def attributes_after(cut: ModuleCut) -> Attributes:
    """New values of the size attributes of one module; none where its kind keeps none.

    Raises:
        ProofError: groups of a convolution or norm would keep different numbers of channels, or the bias of a layer
            would not fit its weight.
    """
    for kind, rule in _RULES:
        if isinstance(cut.module, kind):
            return rule(cut)
    return {}


def _convolution(cut: ModuleCut) -> Attributes:
    if "weight" not in cut.shapes:
        return {}
    weight = cut.shapes["weight"]
    groups = _groups_after(cut, "weight", groups=cut.dense("groups"))
    if isinstance(cut.module, _ConvTransposeNd):
        in_channels, out_channels = weight[0], groups * weight[1]
    else:
        in_channels, out_channels = groups * weight[1], weight[0]
    _check_bias(cut, out_channels)
    return {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}


def _linear(cut: ModuleCut) -> Attributes:
    if "weight" not in cut.shapes:
        return {}
    out_features, in_features = cut.shapes["weight"]
    _check_bias(cut, out_features)
    return {"in_features": in_features, "out_features": out_features}


def _batch_norm(cut: ModuleCut) -> Attributes:
    features = cut.first_size("weight", "running_mean", "bias")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if name in cut.shapes and cut.shapes[name] != (features,):
            raise ProofError(f"{name} would have shape {cut.shapes[name]} beside {features} features", where=cut.where)
    return {"num_features": features}


def _layer_norm(cut: ModuleCut) -> Attributes:
    return {"normalized_shape": cut.shapes["weight"]}


def _group_norm(cut: ModuleCut) -> Attributes:
    _check_bias(cut, cut.shapes["weight"][0])
    groups = _groups_after(cut, "weight", groups=cut.dense("num_groups"))
    return {"num_channels": cut.shapes["weight"][0], "num_groups": groups}


def _prelu(cut: ModuleCut) -> Attributes:
    return {"num_parameters": cut.shapes["weight"][0]}


def _embedding(cut: ModuleCut) -> Attributes:
    count, width = cut.shapes["weight"]
    return {"num_embeddings": count, "embedding_dim": width}


def _recurrent(cut: ModuleCut) -> Attributes:
    suffix = "" if "weight_ih" in cut.shapes else "_l0"
    return {"input_size": cut.shapes[f"weight_ih{suffix}"][1], "hidden_size": cut.shapes[f"weight_hh{suffix}"][1]}


_RULES: tuple[tuple[type[nn.Module], Callable[[ModuleCut], Attributes]], ...] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (_NormBase, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent),
)


def _groups_after(cut: ModuleCut, name: str, *, groups: int) -> int:
    kept = cut.kept.get((name, 0))
    if kept is None:
        return groups
    group_size = _dense_size(cut, name) // groups
    counts: dict[int, int] = {}
    for index in kept:
        counts[index // group_size] = counts.get(index // group_size, 0) + 1
    if len(set(counts.values())) > 1:
        raise ProofError(
            f"the plan keeps between {min(counts.values())} and {max(counts.values())} channels in the "
            f"{len(counts)} groups that stay; all must keep equally many",
            where=cut.where,
        )
    return len(counts)


def _dense_size(cut: ModuleCut, name: str) -> int:
    return int(getattr(cut.module, name).shape[0])


def _check_bias(cut: ModuleCut, expected: int) -> None:
    bias = cut.shapes.get("bias")
    if bias is not None and bias != (expected,):
        raise ProofError(f"bias would have shape {bias} where {expected} channels stay", where=cut.where)
