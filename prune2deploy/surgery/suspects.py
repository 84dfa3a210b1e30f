"""Which groups a failing ``forward`` points at: those whose channels meet a size at the source line that raised."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from prune2deploy.graph.channels import FROZEN
from prune2deploy.graph.labels import Value
from prune2deploy.graph.trace import Trace

Place = tuple[str, int]
"""A source file and a line of it."""

_TORCH = str(Path(torch.__file__).parent)


class Suspects:
    """The places of an exported program, to look up what a failure may be about.

    ``lines`` has the source line (``file:line``) that raised when a group was first named.
    """

    def __init__(self, trace: Trace) -> None:
        self.lines: dict[int, str] = {}
        self._trace = trace
        self._group_of = trace.graph.group_of
        self._nodes: dict[Place, list[torch.fx.Node]] = {}
        for node in trace.program.graph.nodes:
            if node.op == "call_function" and _takes_sizes(node):
                for place in _own_line(_places_of(node)):
                    self._nodes.setdefault(place, []).append(node)

    def named_by(self, error: Exception) -> set[int]:
        """The groups that pass the line which raised ``error``, wherever that line runs; none where nothing is known.

        Code is shared between blocks, so that the failure of one names the groups of all.
        """
        frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
        places = list(_own_line(frames))
        for place in places:
            groups = {group for node in self._nodes.get(place, ()) for group in self._groups_at(node)}
            if groups:
                file, line = places[-1]
                self.lines = {**dict.fromkeys(groups, f"{file}:{line}"), **self.lines}
                return groups
        return set()

    def _groups_at(self, node: torch.fx.Node) -> Iterator[int]:
        for one in (node, *node.all_input_nodes):
            values = self._trace.interpretation.values.get(one.name, ())
            for value in (values,) if isinstance(values, Value) else values:
                for block in value.blocks:
                    channels = self._trace.channel_of_label[block.labels.ravel()]
                    yield from self._group_of[channels[channels != FROZEN]].tolist()


def _takes_sizes(node: torch.fx.Node) -> bool:
    """Whether the operator is told sizes or positions, such as those of a view, a slice or a norm."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any("int" in str(argument.type) or "Int" in str(argument.type) for argument in node.target._schema.arguments)


def _places_of(node: torch.fx.Node) -> list[Place]:
    """The calls that led to ``node``, outermost first."""
    places = []
    for text in (node.meta.get("stack_trace") or "").splitlines():
        name, found, line = text.strip().removeprefix('File "').partition('", line ')
        if found:
            places.append((name, int(line.partition(",")[0])))
    return places


def _own_line(places: list[Place]) -> Iterator[Place]:
    """The innermost line outside torch, after what torch calls from there, innermost first."""
    for place in reversed(places):
        yield place
        if not place[0].startswith(_TORCH):
            return
