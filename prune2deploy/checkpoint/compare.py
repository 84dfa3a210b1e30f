"""The differences between the tensors that a model needs and those that a checkpoint has, grouped for reading."""

from collections.abc import Iterable
from dataclasses import dataclass

from prune2deploy.budget.plan import Shapes

_SHOWN_GROUPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Names that the model needs and the checkpoint lacks, that only the checkpoint has, and that differ in shape.

    ``misshapen`` holds (name, shape in the model, shape in the checkpoint).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def count(self) -> int:
        """How many tensors differ."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def __str__(self) -> str:
        """One line: each kind of difference, by module, the largest groups first."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({grouped(self.missing)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected ({grouped(self.unexpected)})")
        if self.misshapen:
            name, expected, found = self.misshapen[0]
            example = f"{name} is {_shape(found)}, not {_shape(expected)}"
            rest = [name for name, _, _ in self.misshapen[1:]]
            others = f"; also {grouped(rest)}" if rest else ""
            parts.append(f"{len(self.misshapen)} of another shape ({example}{others})")
        return ", ".join(parts) or "none"


def compare(*, expected: Shapes, found: Shapes) -> Differences:
    """Compare the tensors that a model needs with those of a checkpoint."""
    return Differences(
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(name for name in found if name not in expected),
        misshapen=tuple(
            (name, tuple(shape), tuple(found[name]))
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ),
    )


def grouped(names: Iterable[str]) -> str:
    """Names by their first component: ``layer4.* 12 tensors, fc.weight``. Capped; the largest groups come first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    texts = [
        members[0] if len(members) == 1 else f"{prefix}.* {len(members)} tensors"
        for prefix, members in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    hidden = len(texts) - _SHOWN_GROUPS
    return ", ".join(texts[:_SHOWN_GROUPS]) + (f" and {hidden} more modules" if hidden > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
