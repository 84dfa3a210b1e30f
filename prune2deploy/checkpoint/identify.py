"""Which architecture is a checkpoint of? Names and shapes are compared with the zoo, then torchvision, then timm.

Names of tensors alone do not say what a network computes: a blur-pool ResNet-50 shares them with the plain one. So all
architectures that fit are given, the first of the first library being the answer and the others its alternatives.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from prune2deploy.budget.plan import Shapes
from prune2deploy.checkpoint.compare import Differences, compare
from prune2deploy.checkpoint.signatures import (
    Signature,
    Varying,
    comparable,
    names_digest,
    signature_of,
    skeleton_shapes,
    stored_signatures,
)
from prune2deploy.errors import CheckpointError, ModelError
from prune2deploy.model.spec import (
    TIMM,
    TORCHVISION,
    ZOO,
    ModelSpec,
    architecture_names,
    class_count_argument,
    input_channels_argument,
    training_only_prefixes,
)

_LIBRARIES = (ZOO, TORCHVISION, TIMM)
_NEAREST_BUILT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identification:
    """The architecture of a checkpoint.

    ``alternatives`` have tensors of the same names and shapes and may compute something else; ``--model`` chooses one
    of them. ``dropped`` are prefixes of tensors that serve training only and that ``spec`` does not build.
    """

    spec: ModelSpec
    alternatives: tuple[ModelSpec, ...]
    dropped: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the choice, one line each."""
        lines = []
        if self.alternatives:
            others = ", ".join(str(spec) for spec in self.alternatives[:6])
            more = len(self.alternatives) - 6
            lines.append(
                f"{self.spec} was chosen; tensors of the same names and shapes are those of {others}"
                f"{f' and {more} more' if more > 0 else ''}: --model overrules"
            )
        lines += [f"{prefix}* serves training only and is left out" for prefix in self.dropped]
        return tuple(lines)


def identify_architecture(
    state_dict: Mapping[str, Tensor], *, hint: str | None = None, where: str = "checkpoint"
) -> Identification:
    """Find the architectures whose tensors have exactly these names and shapes.

    Class count and input channels are read off the tensors, and given as arguments where they are not the default.
    A ``hint`` (the spec that the file itself names) comes first if it fits, since the file knows best.

    Raises:
        CheckpointError: none fits; the nearest architecture and the differences from it are named.
    """
    shapes = comparable({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    for dropped in ((), *_training_only_heads(shapes)):
        kept = {name: shape for name, shape in shapes.items() if not name.startswith(dropped)} if dropped else shapes
        specs = list(dict.fromkeys([*_from_hint(hint, kept), *_fitting(kept)]))
        if specs:
            return Identification(spec=specs[0], alternatives=tuple(specs[1:]), dropped=dropped)
    nearest = nearest_architecture(shapes)
    if nearest is None:
        raise CheckpointError(
            "is of no architecture known here, nor near one",
            where=where,
            hint="pass --model package.module:factory with the factory of your own model",
        )
    raise CheckpointError(
        f"is of no architecture known here; the nearest is {nearest.spec}: {nearest.differences}",
        where=where,
        hint="pass --model package.module:factory with the factory of your own model",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """An architecture that almost fits, and what is different."""

    spec: ModelSpec
    differences: Differences


def nearest_architecture(shapes: Shapes) -> Nearest | None:
    """The architecture with the fewest differing tensors; None where none shares a third of the names."""
    shapes = comparable(shapes)
    prefixes = {name.partition(".")[0] for name in shapes}

    def unlikeness(candidate: tuple[ModelSpec, Signature]) -> float:
        signature = candidate[1]
        shared = len(prefixes & set(signature.prefixes)) / len(prefixes | set(signature.prefixes))
        sizes = sorted((signature.tensor_count, len(shapes)))
        return -shared * sizes[0] / max(sizes[1], 1)

    candidates = sorted((candidate for source in _LIBRARIES for candidate in _known(source).items()), key=unlikeness)
    found = []
    for spec, signature in candidates[: 4 * _NEAREST_BUILT]:
        fitted = _with_counts(spec, signature, shapes) or spec
        try:
            expected = skeleton_shapes(fitted)
        except ModelError:
            continue
        found.append(Nearest(spec=fitted, differences=compare(expected=expected, found=shapes)))
    found.sort(key=lambda item: item.differences.count)
    if not found or len(found[0].differences.missing) > 2 * len(shapes) / 3:
        return None
    return found[0]


def _fitting(shapes: Shapes) -> Iterator[ModelSpec]:
    """What fits, the answer first. It is built to make sure; alternatives are told from the signatures alone."""
    digest = names_digest(shapes)
    answered = False
    for source in _LIBRARIES:
        for spec, signature in _known(source).items():
            if signature.names == digest and signature.matches(shapes):
                fitted = _with_counts(spec, signature, shapes)
                if fitted is not None and (answered or _really_fits(fitted, shapes)):
                    answered = True
                    yield fitted


def _from_hint(hint: str | None, shapes: Shapes) -> Iterator[ModelSpec]:
    if hint is None:
        return
    try:
        named = ModelSpec.parse(hint)
        spec = ModelSpec(source=named.source, name=named.name)
        fitted = _with_counts(spec, signature_of(spec), shapes)
    except ModelError:
        return
    if fitted is not None and _really_fits(fitted, shapes):
        yield fitted


def _really_fits(spec: ModelSpec, shapes: Shapes) -> bool:
    """Build it: the stored signatures may be of another version of the library."""
    try:
        return skeleton_shapes(spec) == dict(shapes)
    except ModelError:
        return False


def _with_counts(spec: ModelSpec, signature: Signature, shapes: Shapes) -> ModelSpec | None:
    """The spec with the class and channel counts of these tensors; None where their dimensions contradict."""
    arguments = {}
    for varying, argument in (
        (signature.classes, class_count_argument(spec)),
        (signature.channels, input_channels_argument(spec)),
    ):
        counts = {_count(item, shapes) for item in varying if item.tensor in shapes}
        if len(counts) > 1 or None in counts:
            return None
        count = next(iter(counts), None)
        if count is not None and argument is not None and count != varying[0].default:
            arguments[argument] = count
    return spec.with_arguments(**arguments)


def _count(item: Varying, shapes: Shapes) -> int | None:
    shape = shapes[item.tensor]
    if item.dim >= len(shape) or shape[item.dim] % item.multiple:
        return None
    return shape[item.dim] // item.multiple


@lru_cache(maxsize=len(_LIBRARIES))
def _known(source: str) -> Mapping[ModelSpec, Signature]:
    """Signatures of what a library installed here can build, short names first, as the plainest variant has those.

    Libraries are told by their stored signatures, without importing them: timm alone takes seconds.
    """
    if source == ZOO:
        specs = [ModelSpec(source=ZOO, name=name) for name in architecture_names(ZOO)]
        return {spec: signature_of(spec) for spec in specs}
    if importlib.util.find_spec(source) is None:
        return {}
    stored = stored_signatures().get(source, {})
    return {
        ModelSpec(source=source, name=name): stored[name] for name in sorted(stored, key=lambda name: (len(name), name))
    }


@lru_cache(maxsize=1)
def _heads() -> tuple[tuple[str, ...], ...]:
    specs = [*_known(TORCHVISION), *_known(TIMM)]
    return tuple(sorted({prefixes for spec in specs if (prefixes := training_only_prefixes(spec))}))


def _training_only_heads(shapes: Shapes) -> list[tuple[str, ...]]:
    return [prefixes for prefixes in _heads() if any(name.startswith(prefixes) for name in shapes)]
