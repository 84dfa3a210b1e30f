"""One build as a job: what the parent hands to the worker process, and how the worker tells its progress."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject


class Tell(Protocol):
    """Where a build tells how far it is."""

    def __call__(self, fraction: float, text: str) -> None:
        """Say that ``fraction`` of the build, 0 to 1, is done, and what happens now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """Which build of which request, on which CPUs (None: not pinned), and within how many seconds.

    The request's claim does not travel: the worker measures and judges nothing.
    """

    request: BenchRequest
    build: int
    cpus: tuple[int, ...] | None
    budget_seconds: float | None

    def to_document(self) -> dict[str, Any]:
        """As a JSON object, for the request file."""
        request = self.request
        return {
            "subjects": [subject.to_document() for subject in request.subjects],
            "engine": request.engine,
            "batches": list(request.batches),
            "evaluation": None if request.evaluation is None else str(request.evaluation),
            "options": asdict(request.options),
            "shapes": {name: list(shape) for name, shape in request.shapes.items()},
            "build": self.build,
            "cpus": self.cpus,
            "budget_seconds": self.budget_seconds,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "BuildJob":
        """From the JSON object that ``to_document`` made."""
        cpus, evaluation = document["cpus"], document["evaluation"]
        request = BenchRequest(
            subjects=tuple(Subject.from_document(subject) for subject in document["subjects"]),
            engine=document["engine"],
            batches=tuple(document["batches"]),
            evaluation=None if evaluation is None else Path(evaluation),
            options=BenchOptions(**document["options"]),
            shapes={name: tuple(shape) for name, shape in document["shapes"].items()},
        )
        return cls(
            request=request,
            build=document["build"],
            cpus=None if cpus is None else tuple(cpus),
            budget_seconds=document["budget_seconds"],
        )
