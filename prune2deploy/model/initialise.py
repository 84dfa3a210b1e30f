"""Fresh weights for a sliced module, drawn for the widths that it has now.

A slice of a dense initialisation has the variance of the dense widths: a layer cut from 64 inputs to 32 would start at
half of the variance that its own architecture prescribes. So the dense architecture is built once more while a
recorder notes which function of ``torch.nn.init`` set each parameter, and the same functions are called on the sliced
parameters, where fan-in and fan-out are those of the new widths.

Two things the functions do not say. Numbers that a constructor computed from a width (``normal_`` with a standard
deviation of sqrt(2 / fan-out), the bounds of a bias) are recognised by the *law* that explains all calls from that line
of code. And parameters set otherwise (``weight.data.normal_``, timm's own initialisers) are redrawn as a slice of the
dense draw, scaled by the law that the variances of such layers follow.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prune2deploy.errors import InputError
from prune2deploy.model.recording import InitialiserCall, record_initialisers
from prune2deploy.model.scaling import Fans, Law, fans_of, law_of_numbers, law_of_variances
from prune2deploy.model.spec import ModelSpec, build_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialisation:
    """How each parameter got its values, by name.

    ``replayed``: by the function of ``torch.nn.init`` that the architecture uses for it. ``constant``: filled with the
    one value that the architecture gives it. ``rescaled``: a slice of the dense draw, scaled by the law named here.
    """

    replayed: tuple[str, ...]
    constant: tuple[str, ...]
    rescaled: Mapping[str, Law]


def reinitialise(model: nn.Module, spec: ModelSpec, *, seed: int) -> Initialisation:
    """Give ``model``, a sliced ``spec``, the initialisation of its own widths; running statistics start anew.

    Parameters keep their objects, types and devices, and the same seed gives the same values on all devices. The
    caller's random state is left as it was.

    Raises:
        InputError: the model is no slice of ``spec``: a parameter has another name, or is larger than the dense one.
    """
    with record_initialisers() as recording:
        dense = build_model(spec, seed=seed)
    calls = recording.calls_of(dense)
    dense_parameters = dict(dense.named_parameters())
    dense_fans = _fans_by_name(dense)
    fans = _fans_by_name(model)
    _check_slice_of(model, dense_parameters, spec)
    number_laws = _laws_of_calls(calls, dense_fans)
    draw_laws = _laws_of_draws(dense, calls, dense_fans)
    replayed, constant, rescaled = [], [], {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for name, parameter in model.named_parameters():
            draw = dense_parameters[name].detach()
            values = torch.empty(parameter.shape, dtype=draw.dtype)
            if name in calls:
                scale = _scale(number_laws.get(name, Law.CONSTANT), dense_fans.get(name), fans.get(name))
                call = _scaled(calls[name], scale)
                call.function(values, **call.arguments)
                replayed.append(name)
            elif _is_constant(draw):
                values.fill_(draw.reshape(-1)[0])
                constant.append(name)
            else:
                law = draw_laws[name]
                part = draw[tuple(slice(size) for size in parameter.shape)]
                values.copy_(part * _scale(law, dense_fans.get(name), fans.get(name)))
                rescaled[name] = law
            parameter.copy_(values)
        _reset_statistics(model, dense)
    return Initialisation(replayed=tuple(replayed), constant=tuple(constant), rescaled=rescaled)


def _reset_statistics(model: nn.Module, dense: nn.Module) -> None:
    """Reset running statistics, found by name, since an edited graph holds tensors only."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for path, module in dense.named_modules(remove_duplicate=False):
        if isinstance(module, _NormBase):
            for attribute, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
                buffer = buffers.get(f"{path}.{attribute}" if path else attribute)
                if buffer is not None:
                    buffer.fill_(value)


def _check_slice_of(model: nn.Module, dense: Mapping[str, Tensor], spec: ModelSpec) -> None:
    for name, parameter in model.named_parameters():
        fits = name in dense and parameter.dim() == dense[name].dim()
        if not fits or any(size > whole for size, whole in zip(parameter.shape, dense[name].shape, strict=True)):
            raise InputError(
                f"the model is no slice of {spec}", where=name, hint="pass the spec that it was built from"
            )
    if absent := dense.keys() - dict(model.named_parameters()).keys():
        raise InputError(f"the model is no slice of {spec}: it has no {sorted(absent)[0]}", where=type(model).__name__)


def _fans_by_name(model: nn.Module) -> dict[str, Fans]:
    found = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            fans = fans_of(module, parameter)
            if fans is not None:
                found[f"{path}.{name}" if path else name] = fans
    return found


def _laws_of_calls(calls: Mapping[str, InitialiserCall], fans: Mapping[str, Fans]) -> dict[str, Law]:
    """The law behind the numbers of each call, told from all calls of that line of code."""
    by_site: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, call in calls.items():
        if name in fans and _spread(call) is not None:
            by_site[call.function.__name__, call.site].append(name)
    laws = {}
    for names in by_site.values():
        spreads = [spread for name in names if (spread := _spread(calls[name])) is not None]
        law = law_of_numbers(spreads, [fans[name] for name in names])
        laws.update(dict.fromkeys(names, law))
    return laws


def _laws_of_draws(dense: nn.Module, calls: Mapping[str, InitialiserCall], fans: Mapping[str, Fans]) -> dict[str, Law]:
    """The law behind drawn values that no call explains, told from all such layers of one kind."""
    by_kind: dict[tuple[str, int, bool], list[tuple[str, Tensor]]] = defaultdict(list)
    for path, module in dense.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{attribute}" if path else attribute
            if name not in calls and not _is_constant(parameter):
                # Depthwise layers have fans of their own, and architectures may treat them apart.
                depthwise = name in fans and fans[name].groups > 1
                by_kind[type(module).__name__, parameter.dim(), depthwise].append((name, parameter.detach()))
    laws = {}
    for members in by_kind.values():
        draws = [
            (float(values.double().var()), values.numel(), fans[name])
            for name, values in members
            if name in fans and values.numel() > 1
        ]
        laws.update(dict.fromkeys((name for name, _ in members), law_of_variances(draws)))
    return laws


def _spread(call: InitialiserCall) -> float | None:
    """The standard deviation or symmetric bound among the arguments; None for functions that compute their own."""
    name, arguments = call.function.__name__, call.arguments
    if name in ("normal_", "trunc_normal_"):
        return float(arguments.get("std", 1.0))
    if name == "uniform_" and arguments.get("a", 0.0) == -arguments.get("b", 1.0):
        return float(arguments["b"])
    return None


def _scaled(call: InitialiserCall, scale: float) -> InitialiserCall:
    if scale == 1.0:
        return call
    arguments = dict(call.arguments)
    if call.function.__name__ == "uniform_":
        return replace(call, arguments={**arguments, "a": arguments["a"] * scale, "b": arguments["b"] * scale})
    spread = float(arguments.get("std", 1.0))
    for bound in ("a", "b"):
        # Bounds that were computed from the deviation move with it; torch's own of -2 and 2 are far out and stay.
        if bound in arguments and abs(arguments[bound]) <= 4 * spread:
            arguments[bound] *= scale
    return replace(call, arguments={**arguments, "std": spread * scale})


def _scale(law: Law, dense: Fans | None, sliced: Fans | None) -> float:
    if dense is None or sliced is None:
        return 1.0
    return math.sqrt(dense.width(law) / sliced.width(law))


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() == 0 or bool((tensor == tensor.reshape(-1)[0]).all())
