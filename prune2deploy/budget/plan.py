"""A pruning plan: pure data that says which indices of which parameters stay.

Plans print, store, replay and compose. They know parameters by name and dimension and nothing of the
graph that they were made from, so that a bundle can be loaded without tracing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prune2deploy.errors import InputError
from prune2deploy.graph.becomes import Becomes
from prune2deploy.graph.fingerprint import fingerprint_of

__all__ = ["Becomes", "KeptIndices", "PrunePlan", "RemovedBranch", "Shapes", "fingerprint_of"]

SCHEMA_VERSION = 2
_WITHOUT_BRANCHES = 1
"""The version of plans that remove no branch, which is written for these still, so that earlier readers take them."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptIndices:
    """The indices of dimension ``dim`` of tensor ``tensor`` that stay, ascending, in the dense model's numbering."""

    tensor: str
    dim: int
    dense_size: int
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.kept:
            raise InputError("a plan may not empty a dimension", where=f"{self.tensor} dim {self.dim}")
        if any(a >= b for a, b in zip(self.kept, self.kept[1:], strict=False)):
            raise InputError("kept indices must ascend without repetition", where=f"{self.tensor} dim {self.dim}")
        if self.kept[0] < 0 or self.kept[-1] >= self.dense_size:
            raise InputError(f"an index lies outside 0..{self.dense_size - 1}", where=f"{self.tensor} dim {self.dim}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedBranch:
    """A residual branch that leaves whole, with all tensors of its modules.

    ``modules``: what becomes of each, by path. ``name`` is that of the branch in the graph.
    """

    name: str
    modules: Mapping[str, Becomes]

    def __post_init__(self) -> None:
        if not self.modules or not all(self.modules):
            raise InputError("a removed branch must name modules below the model itself", where=self.name)

    def owns(self, name: str) -> bool:
        """Whether a tensor or module, by its name, leaves with this branch."""
        return any(name == path or name.startswith(f"{path}.") for path in self.modules)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What stays of a dense model. Tensors and dimensions that are not listed stay whole.

    ``tensors`` are parameters and buffers by their ``state_dict`` names, shared ones under their first
    name. ``removed`` are the residual branches that leave whole; their tensors have no entries. ``fingerprint`` is that
    of the dense model. ``provenance`` says how the plan came about (method, criterion, target, alignment): it is
    printed and stored, and changes nothing.
    """

    fingerprint: str
    entries: tuple[KeptIndices, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    removed: tuple[RemovedBranch, ...] = ()

    def __post_init__(self) -> None:
        for entry in self.entries:
            if self.removes(entry.tensor):
                raise InputError("the plan slices a tensor that leaves whole", where=f"{entry.tensor} dim {entry.dim}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is removed."""
        return not self.removed and all(len(entry.kept) == entry.dense_size for entry in self.entries)

    @property
    def schema_version(self) -> int:
        """The version of the document that holds this plan."""
        return SCHEMA_VERSION if self.removed else _WITHOUT_BRANCHES

    def removes(self, name: str) -> bool:
        """Whether a tensor or module, by its name, leaves with a branch."""
        return any(branch.owns(name) for branch in self.removed)

    def then(self, later: "PrunePlan") -> "PrunePlan":
        """The plan that does this one and then ``later``, whose indices count within what this one kept.

        ``later`` carries the fingerprint of the pruned model; the result carries that of the dense one.
        """
        earlier = tuple(
            branch for branch in self.removed if not all(later.removes(path) for path in branch.modules)
        )  # a branch within one that leaves later is not told of twice
        removed = (*earlier, *later.removed)
        first = {
            (entry.tensor, entry.dim): entry
            for entry in self.entries
            if not any(one.owns(entry.tensor) for one in removed)
        }
        second = {(entry.tensor, entry.dim): entry for entry in later.entries}
        entries = []
        for key in sorted(first.keys() | second.keys()):
            if key not in second:
                entries.append(first[key])
            elif key not in first:
                entries.append(second[key])
            else:
                before, after = first[key], second[key]
                if after.dense_size != len(before.kept):
                    raise InputError(
                        f"the second plan counts {after.dense_size} indices where the first left {len(before.kept)}",
                        where=f"{before.tensor} dim {before.dim}",
                    )
                kept = tuple(before.kept[index] for index in after.kept)
                entries.append(
                    KeptIndices(tensor=before.tensor, dim=before.dim, dense_size=before.dense_size, kept=kept)
                )
        return PrunePlan(
            fingerprint=self.fingerprint, entries=tuple(entries), provenance=later.provenance, removed=removed
        )

    def to_document(self) -> dict[str, Any]:
        """As a JSON object; kept indices as runs [first, count]."""
        document: dict[str, Any] = {
            "schema_version": self.schema_version,
            "fingerprint": self.fingerprint,
            "provenance": dict(self.provenance),
            "entries": [
                {"tensor": entry.tensor, "dim": entry.dim, "dense_size": entry.dense_size, "kept": _runs(entry.kept)}
                for entry in self.entries
            ],
        }
        if self.removed:
            document["removed"] = [
                {"name": branch.name, "modules": {path: str(becomes) for path, becomes in branch.modules.items()}}
                for branch in self.removed
            ]
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str = "plan") -> "PrunePlan":
        """From a JSON object.

        Raises:
            InputError: the document is damaged or of another schema version.
        """
        if document.get("schema_version") not in (_WITHOUT_BRANCHES, SCHEMA_VERSION):
            raise InputError(
                f"the plan has schema version {document.get('schema_version')}, this p2d reads "
                f"{_WITHOUT_BRANCHES} and {SCHEMA_VERSION}",
                where=where,
            )
        try:
            entries = tuple(
                KeptIndices(
                    tensor=entry["tensor"],
                    dim=entry["dim"],
                    dense_size=entry["dense_size"],
                    kept=tuple(index for first, count in entry["kept"] for index in range(first, first + count)),
                )
                for entry in document["entries"]
            )
            removed = tuple(
                RemovedBranch(
                    name=branch["name"],
                    modules={path: Becomes(becomes) for path, becomes in branch["modules"].items()},
                )
                for branch in document.get("removed", ())
            )
            return cls(
                fingerprint=document["fingerprint"],
                entries=entries,
                provenance=document["provenance"],
                removed=removed,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"the plan is damaged ({error})", where=where) from error


def _runs(indices: Iterable[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1][1] += 1
        else:
            runs.append([index, 1])
    return runs
