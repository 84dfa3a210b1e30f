"""What a training leaves behind: one record an epoch, and the result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError
from prune2deploy.policies.policy import Findings
from prune2deploy.training.cost import TrainingCost
from prune2deploy.training.recipe import TrainingRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch. ``epoch`` counts from 1.

    ``loss`` (nat, label smoothing included, penalties of a policy not) and ``training_accuracy`` are averages over the
    epoch, in ``train`` mode and with augmentation; ``accuracy`` is that on the evaluation split at its end.
    ``learning_rate`` is that of its last step, ``batch_size`` that of all processes together. ``seconds`` covers
    training alone, without evaluation. ``parameters`` counts the learnable values and ``flops`` the forward FLOPs of
    one image of the model at its last step.
    """

    epoch: int
    loss: float
    training_accuracy: float
    accuracy: float
    learning_rate: float
    seconds: float
    parameters: int
    flops: int
    batch_size: int

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "EpochRecord":
        """From a JSON object. Raises ``KeyError`` where a field is missing."""
        return cls(**{one.name: document[one.name] for one in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """How a training went. The trained weights are in the model that was passed in.

    ``accuracy`` and ``loss`` are those of the final model on the evaluation split. ``images_per_second`` is the
    training throughput over all epochs and processes, evaluation not counted. ``plan`` is everything that a policy
    cut, relative to the model as it was passed in, and ``findings`` what it saw. ``resumed_at`` is the number of epochs
    taken from a state file.
    """

    recipe: TrainingRecipe
    history: tuple[EpochRecord, ...]
    accuracy: float
    loss: float
    images_per_second: float
    device: str
    processes: int
    cost: TrainingCost
    plan: PrunePlan | None = None
    findings: Findings = field(default_factory=Findings)
    resumed_at: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of training, over all epochs, evaluation not counted."""
        return sum(record.seconds for record in self.history)

    def to_document(self) -> dict[str, Any]:
        """As a JSON object, for the run's manifest."""
        return {
            "recipe": self.recipe.to_document(),
            "history": [asdict(record) for record in self.history],
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "device": self.device,
            "processes": self.processes,
            "cost": self.cost.to_document(),
            "findings": dict(self.findings.document),
            "resumed_at": self.resumed_at,
        }


def history_from_documents(documents: object, *, where: str) -> tuple[EpochRecord, ...]:
    """Records from a list of JSON objects.

    Raises:
        InputError: it is no such list.
    """
    if not isinstance(documents, list):
        raise InputError("holds no history of epochs", where=where)
    try:
        return tuple(EpochRecord.from_document(document) for document in documents)
    except (KeyError, TypeError) as error:
        raise InputError(f"its history of epochs is damaged ({error})", where=where) from error
