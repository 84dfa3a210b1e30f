"""What a training cost: operations, seconds by phase, memory. Measured, so that "trains faster" is a fact."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from prune2deploy.errors import InputError

BACKWARD_AND_FORWARD = 3
"""A training step takes three times the FLOPs of its forward pass: the backward pass has two products for each one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """The cost of one training, over all its epochs and processes.

    ``training_flops`` are those of all steps, each image at the size that the model had then, three times its forward
    FLOPs (and those of a teacher's forward pass); ``dense_training_flops`` what the same images would have taken with
    the model that the training began with. ``seconds`` by phase: ``training`` (the steps), ``evaluating``, ``deciding``
    (what a policy does at its moments, such as scoring), ``cutting``, ``saving``. ``images`` were trained on.
    ``peak_memory_bytes`` is the most that the device allocated during the training; on a CPU the most that this process
    ever held, the training and all before it; None where the system does not tell.
    """

    training_flops: int = 0
    dense_training_flops: int = 0
    images: int = 0
    steps: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None

    @property
    def flops_fraction(self) -> float:
        """Training FLOPs as a share of the dense ones."""
        return self.training_flops / max(self.dense_training_flops, 1)

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "flops_fraction": self.flops_fraction}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> "TrainingCost":
        """From a JSON object.

        Raises:
            InputError: a field is missing or unknown.
        """
        try:
            return cls(**{name: value for name, value in document.items() if name != "flops_fraction"})
        except TypeError as error:
            raise InputError(f"its account of the training's cost is damaged ({error})", where=where) from error


class CostMeter:
    """Adds up the cost of a training in progress; goes on from ``begun`` where one is resumed."""

    def __init__(self, device: torch.device, begun: TrainingCost | None = None) -> None:
        begun = begun or TrainingCost()
        self._device = device
        self._flops = begun.training_flops
        self._dense_flops = begun.dense_training_flops
        self._images = begun.images
        self._steps = begun.steps
        self._seconds = dict(begun.seconds)
        self._peak_before = begun.peak_memory_bytes or 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds inside to ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - started)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Count ``seconds`` to the phase ``name``."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def add_step(self, images: int, *, flops: int, dense_flops: int, teacher_flops: int = 0) -> None:
        """Count a step on ``images``; the others are forward FLOPs of one image."""
        self._images += images
        self._steps += 1
        self._flops += images * (BACKWARD_AND_FORWARD * flops + teacher_flops)
        self._dense_flops += images * (BACKWARD_AND_FORWARD * dense_flops + teacher_flops)

    def total(self) -> TrainingCost:
        """All that was counted so far."""
        peak = _peak_memory(self._device)
        return TrainingCost(
            training_flops=self._flops,
            dense_training_flops=self._dense_flops,
            images=self._images,
            steps=self._steps,
            seconds=dict(self._seconds),
            peak_memory_bytes=None if peak is None else max(peak, self._peak_before),
        )


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu":
        return None
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
