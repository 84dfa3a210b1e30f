"""An exported program in the form that the rules read: no wrappers that only set a mode, and no hidden sizes."""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prune2deploy.graph.sizes import shape_of

_GRADIENTS = "wrap_with_set_grad_enabled"
_MODES = frozenset({_GRADIENTS, "wrap_with_autocast"})


def inline_wrappers(program: ExportedProgram) -> None:
    """Put what runs without gradients or without autocast in the place of its wrapper, in ``program`` itself.

    What runs without gradients takes its inputs detached, so that in training none flow through it afterwards either.
    Parts under an autocast that is on stay wrapped: without it they would compute in another precision.
    """
    module = program.graph_module
    changed = False
    while wrapped := next((node for node in module.graph.nodes if _is_mode(node)), None):
        _inline(module, wrapped)
        changed = True
    if changed:
        module.graph.lint()
        module.recompile()


def write_scales(program: ExportedProgram) -> None:
    """Write the scale of each attention that takes it from the size of its heads: it stays when these shrink."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.scaled_dot_product_attention.default and node.kwargs.get("scale") is None:
            query = node.args[0]
            assert isinstance(query, Node)
            node.update_kwarg("scale", shape_of(query)[-1] ** -0.5)


def _is_mode(node: Node) -> bool:
    name = getattr(node.target, "__name__", "")
    if node.op != "call_function" or name not in _MODES:
        return False
    return name == _GRADIENTS or not node.args[2]


def _inline(module: torch.fx.GraphModule, wrapper: Node) -> None:
    position = next(i for i, one in enumerate(wrapper.args) if isinstance(one, Node) and one.op == "get_attr")
    holder = wrapper.args[position]
    assert isinstance(holder, Node)
    inside = module.get_submodule(str(holder.target))
    assert isinstance(inside, torch.fx.GraphModule)
    without_gradients = getattr(wrapper.target, "__name__", "") == _GRADIENTS and not wrapper.args[0]
    copies: dict[Node, Node] = {}
    placeholders = [node for node in inside.graph.nodes if node.op == "placeholder"]
    for placeholder, argument in zip(placeholders, wrapper.args[position + 1 :], strict=True):
        assert isinstance(argument, Node)
        copies[placeholder] = _detached(argument, before=wrapper) if without_gradients else argument
    results: tuple[Node, ...] = ()
    with module.graph.inserting_before(wrapper):
        for node in inside.graph.nodes:
            if node.op == "output":
                returned = node.args[0]
                results = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
            elif node.op == "get_attr":
                _take_attribute(module, inside, node)
                copies[node] = module.graph.node_copy(node, copies.__getitem__)
            elif node.op != "placeholder":
                copies[node] = module.graph.node_copy(node, copies.__getitem__)
    for user in list(wrapper.users):
        user.replace_all_uses_with(copies[results[int(user.args[1])]])  # type: ignore[arg-type]
        module.graph.erase_node(user)
    module.graph.erase_node(wrapper)
    if not holder.users:
        module.graph.erase_node(holder)


def _detached(argument: Node, *, before: Node) -> Node:
    """The same tensor, of which nothing is recorded for gradients; what is no tensor, as it is."""
    if not isinstance(argument.meta.get("val"), torch.Tensor):
        return argument
    with before.graph.inserting_before(before):
        detached = before.graph.call_function(torch.ops.aten.detach.default, (argument,))
    detached.meta = {key: before.meta[key] for key in ("stack_trace", "nn_module_stack") if key in before.meta}
    detached.meta["val"] = argument.meta["val"]
    return detached


def _take_attribute(module: torch.fx.GraphModule, inside: torch.fx.GraphModule, node: Node) -> None:
    """A nested wrapper or constant under a name that is free in the outer module."""
    name = str(node.target)
    free = name
    number = 0
    while hasattr(module, free):
        number += 1
        free = f"{name}_{number}"
    setattr(module, free, getattr(inside, name))
    node.target = free
