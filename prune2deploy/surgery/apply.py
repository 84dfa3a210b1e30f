"""Cut a plan out of a module: slice its tensors by name, with no graph and no tracing.

A plan names tensors and the indices of each dimension that stay. Slicing the tensors is most of the work; the rest is
``surgery.sizes``, which makes the sizes that modules keep as plain attributes agree. Modules of residual branches that
leave whole are replaced by ones without parameters (``surgery.replacements``). Everything is computed and checked
before the module is touched, so a plan that does not fit leaves it as it was.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prune2deploy.budget.plan import PrunePlan, fingerprint_of
from prune2deploy.errors import InputError
from prune2deploy.surgery.replacements import replacement
from prune2deploy.surgery.sizes import Attributes, ModuleCut, attributes_after

Kept = dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """What a plan does to one module: the sliced tensors by the ``id`` of the dense ones, new sizes by module path.

    ``removed``: the tensors that leave with residual branches; ``modules``: what stands in for modules, by path.
    """

    tensors: dict[int, Tensor]
    attributes: dict[str, Attributes]
    removed: tuple[Tensor, ...]
    modules: dict[str, nn.Module]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the ``state_dict``, shared ones under each of their names."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers themselves, by ``state_dict`` name; a shared one under each of its names."""
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def apply_plan(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """Slice ``model`` in place and return it.

    Sliced parameters are new ``nn.Parameter`` objects that keep dtype, device, memory layout, ``requires_grad`` and
    Python attributes; gradients are dropped. A tensor shared by several modules is sliced once and stays shared. What
    the plan does not name stays the same object. Hooks stay, but for those of modules that leave with a branch.

    Raises:
        InputError: the plan belongs to another model.
        ProofError: the plan would leave a convolution or norm with groups of different sizes. The model is unchanged.
    """
    cut = _cut(model, plan)
    replace_tensors(model, cut.tensors)
    _set_attributes(model, cut.attributes)
    _replace_modules(model, cut.modules)
    return model


def pruned_copy(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """A sliced copy of ``model``, which stays whole. The dense tensors that the plan slices are never copied.

    Raises:
        InputError: the plan belongs to another model.
        ProofError: the plan would leave a convolution or norm with groups of different sizes.
    """
    cut = _cut(model, plan)
    # deepcopy takes what its memo already holds for the copy, so the sliced tensors stand in for the dense ones. Those
    # that leave stand in for themselves until their modules are gone.
    pruned = copy.deepcopy(model, {**cut.tensors, **{id(tensor): tensor for tensor in cut.removed}})
    _set_attributes(pruned, cut.attributes)
    _replace_modules(pruned, cut.modules)
    return pruned


def replace_tensors(model: nn.Module, replacements: Mapping[int, Tensor]) -> None:
    """Put a new tensor wherever the one with that ``id`` is registered, so that shared tensors stay shared."""
    for module in model.modules():
        for registered in _registries(module):
            for attribute, tensor in registered.items():
                if tensor is not None and id(tensor) in replacements:
                    registered[attribute] = replacements[id(tensor)]
        if isinstance(module, nn.RNNBase):  # it computes with a list of its own
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def as_parameter_like(dense: Tensor, values: Tensor) -> Tensor:
    """``values`` as what ``dense`` is: a parameter with its ``requires_grad`` and Python attributes, or a buffer."""
    if not isinstance(dense, nn.Parameter):
        return values
    parameter = nn.Parameter(values, requires_grad=dense.requires_grad)
    parameter.__dict__.update(dense.__dict__)
    return parameter


def sliced_tensors(model: nn.Module, plan: PrunePlan) -> dict[int, Tensor]:
    """The tensors that ``plan`` makes smaller, sliced, by the ``id`` of the dense ones. ``model`` stays whole.

    Raises:
        InputError: the plan belongs to another model.
    """
    return _slices(model, plan)[0]


def _cut(model: nn.Module, plan: PrunePlan) -> _Cut:
    sliced, kept_of = _slices(model, plan)
    attributes: dict[str, Attributes] = {}
    for path, module in model.named_modules():
        cut = _module_cut(module, path, sliced, kept_of)
        if cut is not None:
            attributes[path] = attributes_after(cut)
    return _Cut(
        tensors=sliced,
        attributes=attributes,
        removed=tuple(tensor for name, tensor in named_tensors(model).items() if plan.removes(name)),
        modules=_replacements(model, plan),
    )


def _replacements(model: nn.Module, plan: PrunePlan) -> dict[str, nn.Module]:
    """What stands in for each module that leaves, by path."""
    found: dict[str, nn.Module] = {}
    for branch in plan.removed:
        for path, becomes in branch.modules.items():
            try:
                found[path] = replacement(becomes, model.get_submodule(path))
            except AttributeError as error:
                raise InputError("the plan removes a module that the model does not have", where=path) from error
    return found


def _slices(model: nn.Module, plan: PrunePlan) -> tuple[dict[int, Tensor], dict[int, Kept]]:
    """The sliced tensors, and what stays of each, by the ``id`` of the dense ones."""
    tensors = named_tensors(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if fingerprint_of(shapes) != plan.fingerprint:
        raise InputError(
            "the plan belongs to another model (names or shapes of tensors differ)",
            where=type(model).__name__,
            hint="apply it to the dense model that it was made from",
        )
    kept_of: dict[int, Kept] = {}
    for entry in plan.entries:
        where = f"{entry.tensor} dim {entry.dim}"
        if entry.tensor not in tensors:
            raise InputError("the plan names a tensor that the model does not have", where=where)
        shape = shapes[entry.tensor]
        if not 0 <= entry.dim < len(shape) or shape[entry.dim] != entry.dense_size:
            raise InputError(f"the plan counts {entry.dense_size} indices, the model's shape is {shape}", where=where)
        kept = kept_of.setdefault(id(tensors[entry.tensor]), {})
        if kept.setdefault(entry.dim, entry.kept) != entry.kept:
            raise InputError("the plan gives two answers for one dimension", where=where)
    sliced = {
        id(tensor): as_parameter_like(tensor, _sliced(tensor.detach(), kept_of[id(tensor)]))
        for tensor in {id(tensor): tensor for tensor in tensors.values()}.values()
        if _removes_something(tensor, kept_of.get(id(tensor), {}))
    }
    return sliced, kept_of


def _module_cut(
    module: nn.Module, path: str, sliced: Mapping[int, Tensor], kept_of: Mapping[int, Kept]
) -> ModuleCut | None:
    own = {
        attribute: tensor
        for registered in _registries(module)
        for attribute, tensor in registered.items()
        if tensor is not None
    }
    if not any(id(tensor) in sliced for tensor in own.values()):
        return None
    return ModuleCut(
        module=module,
        where=path or type(module).__name__,
        shapes={name: tuple(sliced.get(id(tensor), tensor).shape) for name, tensor in own.items()},
        kept={
            (name, dim): kept
            for name, tensor in own.items()
            if id(tensor) in sliced
            for dim, kept in kept_of[id(tensor)].items()
        },
    )


def _registries(module: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    yield module._parameters  # type: ignore[misc]  # a dict of parameters, to which only parameters are written back
    yield module._buffers


def _removes_something(tensor: Tensor, kept: Kept) -> bool:
    return any(len(indices) < tensor.shape[dim] for dim, indices in kept.items())


def _sliced(tensor: Tensor, kept: Kept) -> Tensor:
    # Selecting in the order of the strides gives a dense result with the same memory layout (channels_last too).
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    values = tensor.permute(order)
    for dim, indices in sorted(kept.items()):
        values = values.index_select(order.index(dim), torch.tensor(indices, device=tensor.device))
    return values.permute([order.index(dim) for dim in range(tensor.dim())])


def _replace_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = module


def _set_attributes(model: nn.Module, attributes: Mapping[str, Attributes]) -> None:
    for path, values in attributes.items():
        module = model.get_submodule(path)
        for attribute, value in values.items():
            setattr(module, attribute, value)
