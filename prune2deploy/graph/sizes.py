"""Sizes in an exported program: numbers, or symbols with the number that was seen in their place."""

from typing import Any

import torch


def has_known_size(size: int | torch.SymInt) -> bool:
    """Whether the size is a number, or a symbol (a dynamic batch) for which the export saw one."""
    return isinstance(size, int) or bool(size.node.has_hint())


def size_of(size: int | torch.SymInt) -> int:
    """The size as a number; that of the export's example for a dynamic one."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    assert isinstance(hint, int), f"{size} has no example"
    return hint


def shape_of_tensor(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape in numbers."""
    return tuple(size_of(size) for size in tensor.shape)


def shape_of(node: torch.fx.Node) -> tuple[int, ...]:
    """Shape of a node's result where that is one tensor, else ()."""
    result: Any = node.meta.get("val")
    return shape_of_tensor(result) if isinstance(result, torch.Tensor) else ()
