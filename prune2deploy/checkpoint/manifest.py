"""What a bundle says of the model it holds."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from prune2deploy import __version__
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import CheckpointError, InputError

SCHEMA_VERSION = 1
BACKENDS = ("module", "graph")
_DIGEST = "manifest_sha256"
_HINT = "copy the bundle again, or make it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleManifest:
    """Everything but the weights.

    ``model`` is the spec of the dense architecture and ``plan`` what was cut out of it (None: nothing).
    ``input_shape`` is (channels, height, width). ``normalization`` is mean and standard deviation on images in [0, 1],
    one value a channel. ``data`` is the data spec that the weights were trained on. ``aliases`` maps second names of
    shared tensors to the name that is stored. ``weights_sha256`` digests names, types, shapes and values of the stored
    tensors. ``backend`` is how the plan is applied: ``module`` (slicing) or ``graph`` (editing). ``metrics`` and
    ``provenance`` are for people and reports, and change nothing.
    """

    model: str
    plan: PrunePlan | None
    input_shape: tuple[int, ...]
    weights_sha256: str
    tensor_count: int
    class_count: int | None = None
    class_names: tuple[str, ...] = ()
    data: str | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    backend: str = "module"
    schema_version: int = SCHEMA_VERSION

    def to_document(self) -> dict[str, Any]:
        """As a JSON object that carries its own digest."""
        document = {
            "schema_version": self.schema_version,
            "model": self.model,
            "input_shape": list(self.input_shape),
            "class_count": self.class_count,
            "class_names": list(self.class_names),
            "data": self.data,
            "normalization": [list(values) for values in self.normalization] if self.normalization else None,
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
            "versions": dict(self.versions),
            "weights_sha256": self.weights_sha256,
            "tensor_count": self.tensor_count,
            "aliases": dict(self.aliases),
            "plan": self.plan.to_document() if self.plan else None,
            "backend": self.backend,
        }
        return {**document, _DIGEST: _digest(document)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> "BundleManifest":
        """From a JSON object.

        Raises:
            CheckpointError: it is of another schema version, was changed, or lacks a field.
        """
        fields = dict(document)
        if fields.get("schema_version") != SCHEMA_VERSION:
            raise CheckpointError(
                f"the bundle has schema version {fields.get('schema_version')}, this p2d reads {SCHEMA_VERSION}",
                where=where,
                hint=f"use the p2d that made it ({_version_in(fields)})",
            )
        if fields.pop(_DIGEST, None) != _digest(fields):
            raise CheckpointError("the manifest of the bundle is damaged", where=where, hint=_HINT)
        try:
            fields["input_shape"] = tuple(fields["input_shape"])
            fields["class_names"] = tuple(fields["class_names"])
            if fields["normalization"] is not None:
                mean, deviation = fields["normalization"]
                fields["normalization"] = (tuple(mean), tuple(deviation))
            if fields["plan"] is not None:
                fields["plan"] = PrunePlan.from_document(fields["plan"], where=where)
            if fields.get("backend", "module") not in BACKENDS:
                raise ValueError(f"it knows no backend {fields['backend']!r}")
            return cls(**fields)
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise CheckpointError(
                f"the manifest of the bundle is damaged ({error})", where=where, hint=_HINT
            ) from error


def versions_here() -> dict[str, str]:
    """Versions of what makes a bundle."""
    return {"prune2deploy": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _version_in(document: Mapping[str, Any]) -> str:
    versions = document.get("versions")
    return f"version {versions.get('prune2deploy', 'unknown')}" if isinstance(versions, Mapping) else "version unknown"
