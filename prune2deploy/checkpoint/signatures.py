"""What a checkpoint of an architecture looks like: the names and shapes of its tensors, condensed.

A signature is taken from two builds without weights: one as the library builds it, one with other class and input
channel counts. Dimensions that differ between the two *vary* with those counts and are left out of the digest, so that
one signature recognises every class count and every number of input channels.

Building each of the 1400 architectures of torchvision and timm takes minutes, so their signatures lie in
``signatures.json``. It is a shortcut and never trusted: what it proposes is built and compared tensor by tensor.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from prune2deploy.budget.plan import Shapes
from prune2deploy.checkpoint.skeleton import build_skeleton
from prune2deploy.errors import ModelError
from prune2deploy.model.spec import ModelSpec, class_count_argument, input_channels_argument
from prune2deploy.surgery.apply import shapes_of

INDEX_FILE = "signatures.json"

# Old files lack these counters, which torch fills in; they must not decide what a checkpoint is.
_COUNTER = "num_batches_tracked"

# Unlikely as any other size of a network, so that a dimension that equals one of them counts that.
_PROBE_CLASSES = 1013
_PROBE_CHANNELS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Varying:
    """A dimension of ``multiple`` times the class or channel count, which is ``default`` unless asked for."""

    tensor: str
    dim: int
    multiple: int
    default: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What identifies the checkpoints of one architecture.

    ``names`` digests the sorted tensor names, ``body`` names and shapes without the dimensions that vary.
    ``prefixes`` are the first components of the names, for finding the nearest architecture.
    """

    tensor_count: int
    names: str
    body: str
    classes: tuple[Varying, ...]
    channels: tuple[Varying, ...]
    prefixes: tuple[str, ...]

    def matches(self, shapes: Shapes) -> bool:
        """Whether tensors of these names and shapes, counters left out, are of this architecture."""
        return self.body == body_digest(shapes, (*self.classes, *self.channels))

    def to_row(self) -> list[Any]:
        """As a JSON array."""
        varying = [
            [[item.tensor, item.dim, item.multiple, item.default] for item in items]
            for items in (self.classes, self.channels)
        ]
        return [self.tensor_count, self.names, self.body, *varying, " ".join(self.prefixes)]

    @classmethod
    def from_row(cls, row: list[Any]) -> "Signature":
        """From a JSON array."""
        tensor_count, names, body, classes, channels, prefixes = row
        return cls(
            tensor_count=tensor_count,
            names=names,
            body=body,
            classes=tuple(Varying(tensor=t, dim=d, multiple=m, default=n) for t, d, m, n in classes),
            channels=tuple(Varying(tensor=t, dim=d, multiple=m, default=n) for t, d, m, n in channels),
            prefixes=tuple(prefixes.split()),
        )


def comparable(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes without the counters of batch normalisation."""
    return {name: shape for name, shape in shapes.items() if not name.endswith(_COUNTER)}


def names_digest(names: Iterable[str]) -> str:
    """Digest of a set of tensor names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def body_digest(shapes: Shapes, varying: Iterable[Varying]) -> str:
    """Digest of names and shapes, the varying dimensions left out."""
    masked = {name: list(shape) for name, shape in shapes.items()}
    for item in varying:
        if item.tensor in masked and item.dim < len(masked[item.tensor]):
            masked[item.tensor][item.dim] = -1
    return hashlib.sha256(json.dumps(sorted(masked.items())).encode()).hexdigest()[:16]


def skeleton_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an architecture, without allocating them.

    Raises:
        ModelError: it cannot be built, or not without its weights.
    """
    return comparable(shapes_of(build_skeleton(spec)))


def signature_of(spec: ModelSpec) -> Signature:
    """Build an architecture twice, without weights, and take its signature.

    Raises:
        ModelError: it cannot be built, or not without its weights.
    """
    shapes = skeleton_shapes(spec)
    probe = _probe_shapes(spec)
    classes, channels = [], []
    for name, shape in shapes.items():
        for dim, (size, probed) in enumerate(zip(shape, probe.get(name, shape), strict=False)):
            if size == probed:
                continue
            if probed == _PROBE_CLASSES:
                classes.append(Varying(tensor=name, dim=dim, multiple=1, default=size))
            elif probed % _PROBE_CHANNELS == 0:
                multiple = probed // _PROBE_CHANNELS
                channels.append(Varying(tensor=name, dim=dim, multiple=multiple, default=size // multiple))
    return Signature(
        tensor_count=len(shapes),
        names=names_digest(shapes),
        body=body_digest(shapes, (*classes, *channels)),
        classes=tuple(classes),
        channels=tuple(channels),
        prefixes=tuple(sorted({name.partition(".")[0] for name in shapes})),
    )


@lru_cache(maxsize=1)
def stored_signatures() -> Mapping[str, Mapping[str, Signature]]:
    """Signatures by source and architecture, as stored in the package; empty where the index is absent."""
    file = resources.files("prune2deploy.checkpoint").joinpath(INDEX_FILE)
    if not file.is_file():
        return {}
    document = json.loads(file.read_text(encoding="utf-8"))
    return {
        source: {name: Signature.from_row(row) for name, row in rows.items()}
        for source, rows in document["architectures"].items()
    }


def _probe_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes with other counts: of both, else of classes alone, else the default's own (then nothing varies)."""
    class_argument, channels_argument = class_count_argument(spec), input_channels_argument(spec)
    classes = {class_argument: _PROBE_CLASSES} if class_argument else {}
    channels = {channels_argument: _PROBE_CHANNELS} if channels_argument else {}
    for arguments in ({**classes, **channels}, classes):
        try:
            return skeleton_shapes(spec.with_arguments(**arguments))
        except ModelError:
            continue
    return {}
