"""Finding the weights in what a training script saved, and what it says of the architecture and the data."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prune2deploy.checkpoint.pickles import TRUST_HINT, StandIn
from prune2deploy.errors import CheckpointError, ModelError
from prune2deploy.model.spec import TIMM, TORCHVISION, ModelSpec, architecture_names

# In order of preference. The raw weights come before their moving average: they are what training goes on from, and
# fine-tuning after pruning does so. The average is taken where a file has nothing else.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema")

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")

# Of averaged models (torch.optim.swa_utils) beside the weights.
_COUNTERS = frozenset({"n_averaged"})

_LIGHTNING = "pytorch-lightning_version"
_LIGHTNING_EXTRAS = ("criterion", "loss", "metric", "train_", "val_", "valid_", "test_")
_CLASSES_AND_CHANNELS = ("num_classes", "in_chans")
# torchvision's first DenseNet weights, still the ones it publishes, name their layers norm.1 where modules are norm1.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")
_DATA_SETS = {"torch/cifar10": "cifar10", "torch/cifar100": "cifar100", "": "imagefolder", "folder": "imagefolder"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwrapped:
    """Weights by name; ``wrapper``: the keys and prefixes that were taken off, outermost first."""

    state_dict: dict[str, Tensor]
    wrapper: tuple[str, ...]


def find_module(content: Any) -> nn.Module | None:
    """The whole module in what was unpickled under trust, bare or under one of the usual keys."""
    if isinstance(content, nn.Module):
        return content
    if isinstance(content, Mapping):
        return next((content[key] for key in (*_WRAPPERS, *_AVERAGED) if isinstance(content.get(key), nn.Module)), None)
    return None


def pickled_module_class(content: Any) -> str | None:
    """The class of a whole pickled module, where that is what the file has in the place of weights."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates = [content[key] for key in (*_WRAPPERS, *_AVERAGED) if key in content][:1]
    for candidate in candidates:
        if (
            isinstance(candidate, StandIn)
            and isinstance(candidate.state, Mapping)
            and {"_parameters", "_modules"} & candidate.state.keys()
        ):
            return candidate.qualified_name
    return None


def unwrap(content: Any, *, where: str) -> Unwrapped:
    """Find the weights and take the usual prefixes off their names.

    Raises:
        CheckpointError: there are no weights, more than one set of them, or entries that are no tensors among them.
    """
    if module_class := pickled_module_class(content):
        raise CheckpointError(
            f"holds a whole pickled {module_class}, not weights",
            where=where,
            hint=f"save model.state_dict() instead, or {TRUST_HINT}",
        )
    lightning = isinstance(content, Mapping) and _LIGHTNING in content
    state, keys = _descend(content, where=where)
    tensors = {name: value for name, value in state.items() if name not in _COUNTERS}
    if lightning:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(_LIGHTNING_EXTRAS)}
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor) or not isinstance(name, str)]
    if others:
        raise CheckpointError(
            f"{len(others)} of the {len(tensors)} entries beside the weights are no tensors ({_listing(others)})",
            where=where,
            hint="save model.state_dict() alone, or under the key state_dict",
        )
    tensors, prefixes = strip_prefixes(tensors)
    return Unwrapped(state_dict={name: tensor.detach() for name, tensor in tensors.items()}, wrapper=(*keys, *prefixes))


def strip_prefixes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take off the prefixes of DataParallel, torch.compile and wrapping modules, as long as all names have one."""
    stripped = dict(tensors)
    prefixes = []
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in stripped)), None):
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
        prefixes.append(prefix)
    return stripped, tuple(prefixes)


def modern_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under today's names, where a published file has older ones."""
    return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state_dict.items()}


def architecture_hint(content: Any) -> str | None:
    """The model spec that a timm training file, a torchvision reference file or PyTorch's ImageNet example names."""
    if not isinstance(content, Mapping):
        return None
    arguments = _fields(content.get("args"))
    architecture = content.get("arch")
    if isinstance(architecture, str) and "model" in arguments:
        source, name = TIMM, arguments["model"]
    elif isinstance(architecture, str):
        source, name = _library_with(architecture), architecture
    elif "model" in arguments and "model" in content:
        source, name = TORCHVISION, arguments["model"]
    else:
        return None
    counts = {key: arguments[key] for key in _CLASSES_AND_CHANNELS if type(arguments.get(key)) is int}
    if counts.get("in_chans") == 3:
        del counts["in_chans"]
    try:
        return str(ModelSpec(source=source, name=str(name), arguments=counts if source == TIMM else {}))
    except ModelError:
        return None


def data_hint(content: Any) -> str | None:
    """The data spec of the folder that a timm or torchvision training file was trained on, if it is still there."""
    arguments = _fields(content.get("args")) if isinstance(content, Mapping) else {}
    data_set = _DATA_SETS.get(str(arguments.get("dataset") or "").lower())
    folders = (arguments.get(key) for key in ("data_dir", "data_path", "data"))
    folder = next((folder for folder in folders if isinstance(folder, str) and folder), None)
    return f"{data_set}:{folder}" if data_set and folder and Path(folder).is_dir() else None


def _descend(content: Any, *, where: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    keys: list[str] = []
    while isinstance(content, Mapping):
        if not content:
            break
        if _tensor_count(content) == len(content):
            return content, tuple(keys)
        key = next((key for key in (*_WRAPPERS, *_AVERAGED) if isinstance(content.get(key), Mapping)), None)
        if key is None and _tensor_count(content):
            return content, tuple(keys)
        key = key or _only_state_dict_in(content, where=where)
        if key is None:
            break
        keys.append(key)
        content = content[key]
    inside = f"only {_listing(content)}" if isinstance(content, Mapping) and content else _kind(content)
    raise CheckpointError(
        f"holds no weights: {inside}", where=where, hint="pass a file that holds a model's state_dict"
    )


def _only_state_dict_in(content: Mapping[str, Any], *, where: str) -> str | None:
    found = [
        key
        for key, value in content.items()
        if isinstance(value, Mapping) and value and _tensor_count(value) == len(value) and "optim" not in str(key)
    ]
    if len(found) > 1:
        raise CheckpointError(
            f"holds {len(found)} sets of weights ({_listing(found)})",
            where=where,
            hint="save the one to be pruned in a file of its own",
        )
    return found[0] if found else None


def _tensor_count(content: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in content.values())


def _library_with(architecture: str) -> str:
    return TORCHVISION if architecture in architecture_names(TORCHVISION) else TIMM


def _fields(arguments: Any) -> Mapping[str, Any]:
    """Fields of an argparse namespace, which was read as a stand-in, or of a plain dict."""
    fields = arguments.state if isinstance(arguments, StandIn) else arguments
    return fields if isinstance(fields, Mapping) else {}


def _kind(content: Any) -> str:
    if isinstance(content, StandIn):
        return f"an object of class {content.qualified_name}"
    return f"an empty {type(content).__name__}" if content in ({}, [], ()) else f"a {type(content).__name__}"


def _listing(names: Mapping[Any, Any] | list[Any]) -> str:
    return ", ".join(_first(names, 5)) + (", ..." if len(names) > 5 else "")


def _first(names: Mapping[Any, Any] | list[Any], count: int) -> Iterator[str]:
    for index, name in enumerate(names):
        if index < count:
            yield str(name)
