"""How to train: every choice in one record that can be stored, compared and repeated."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from prune2deploy.errors import InputError

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "step", "constant"]
MixedPrecision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """Everything that determines a training, besides model and data. The defaults train from scratch.

    epochs: passes over the training split.
    learning_rate: its peak, reached after the warm-up.
    batch_size: images a step, over all processes together; it must divide among them.
    optimizer: ``sgd`` (with ``momentum`` and ``nesterov``) or ``adamw`` (betas 0.9 and 0.999).
    weight_decay: on weights with two dimensions or more; norm scales, shifts and biases are not decayed, as in
        He et al. 2019, "Bag of tricks for image classification".
    schedule: the learning rate after the warm-up, moved at every step. ``cosine`` falls to zero at the end; ``step``
        is multiplied by ``gamma`` at each epoch of ``milestones``; ``constant`` stays.
    warmup_epochs: epochs of linear warm-up from a hundredth of the learning rate; fractions are allowed. It takes at
        most half of the training, and ends before the first milestone of the ``step`` schedule.
    label_smoothing: in [0, 1).
    mixed_precision: ``no``, ``fp16`` (with loss scaling; needs a GPU) or ``bf16``.
    gradient_clip: largest L2 norm of all gradients together; None for no limit.
    micro_batches: parts into which each process splits its share of a batch; their gradients are added up before the
        step, so that a batch takes less memory. Batch norms then see one part at a time.
    ema_decay: keep an exponential moving average of the weights with this decay (a step), and evaluate and keep that
        one; None for none.
    compile: a backend of ``torch.compile`` for the training step (``inductor`` needs a C++ compiler); None for eager.
    distill_weight: share of the loss that is distilled from a teacher, where there is one (Hinton et al. 2015).
    distill_temperature: its temperature.
    seed: of data order, augmentation and dropout (not of the model's initial weights).
    workers: processes that load data; 0 loads in the training process, best for small data sets.

    Raises:
        InputError: a value is out of its range; the field is named.
    """

    epochs: int = 30
    learning_rate: float = 0.1
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: ScheduleName = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    mixed_precision: MixedPrecision = "no"
    gradient_clip: float | None = None
    micro_batches: int = 1
    ema_decay: float | None = None
    compile: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 4.0
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "above 0")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(self.optimizer in get_args(OptimizerName), "optimizer", self.optimizer, "sgd or adamw")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        _require(self.schedule in get_args(ScheduleName), "schedule", self.schedule, "cosine, step or constant")
        ascending = all(a < b for a, b in zip((0, *self.milestones), self.milestones, strict=False))
        _require(ascending, "milestones", self.milestones, "ascending epochs from 1 on")
        _require(bool(self.milestones) or self.schedule != "step", "milestones", (), "given with the step schedule")
        _require(0 < self.gamma <= 1, "gamma", self.gamma, "in (0, 1]")
        _require(0 <= self.warmup_epochs < math.inf, "warmup_epochs", self.warmup_epochs, "0 or more")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(
            self.mixed_precision in get_args(MixedPrecision),
            "mixed_precision",
            self.mixed_precision,
            "no, fp16 or bf16",
        )
        clip = self.gradient_clip
        _require(clip is None or 0 < clip < math.inf, "gradient_clip", clip, "above 0, or none")
        _require(self.micro_batches >= 1, "micro_batches", self.micro_batches, "at least 1")
        ema = self.ema_decay
        _require(ema is None or 0 <= ema < 1, "ema_decay", ema, "in [0, 1), or none")
        _require(0 <= self.distill_weight <= 1, "distill_weight", self.distill_weight, "in [0, 1]")
        _require(0 < self.distill_temperature < math.inf, "distill_temperature", self.distill_temperature, "above 0")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2**63 - 1")
        _require(self.workers >= 0, "workers", self.workers, "0 or more")

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str = "recipe") -> "TrainingRecipe":
        """From a JSON object.

        Raises:
            InputError: a field is unknown, or its value out of range.
        """
        unknown = sorted(document.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"the training recipe has unknown fields {', '.join(unknown)}", where=where)
        try:
            return cls(**document)
        except TypeError as error:
            raise InputError(f"the training recipe is damaged ({error})", where=where) from error

    def differences(self, other: "TrainingRecipe") -> tuple[str, ...]:
        """What differs, as ``"epochs 10 instead of 20"`` with this recipe's value first."""
        return tuple(
            f"{field.name} {getattr(self, field.name)} instead of {getattr(other, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        )


def fine_tuning_defaults(**changes: Any) -> TrainingRecipe:
    """The recipe that mends a pruned network: a tenth of the learning rate and a third of the epochs of scratch.

    ``changes`` overrule single fields.

    Raises:
        InputError: a field is unknown, or its value out of range.
    """
    return TrainingRecipe.from_document({"epochs": 10, "learning_rate": 0.01, "warmup_epochs": 0.0, **changes})


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise InputError(f"is {value}, but must be {rule}", where=field)
