"""The one file from which an interrupted training goes on: everything as it was at the end of an epoch."""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError, StorageError
from prune2deploy.storage import atomic_path
from prune2deploy.training.cost import TrainingCost
from prune2deploy.training.history import EpochRecord, history_from_documents
from prune2deploy.training.recipe import TrainingRecipe

SCHEMA_VERSION = 2

_REPEAT = "repeat the options of the interrupted training, or train without --resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """A training between two epochs.

    ``data`` is the name of the data set with the sizes of its splits. ``model``, ``optimizer``, ``scheduler``,
    ``scaler`` (None unless fp16) and ``average`` (None unless weights are averaged) are state dicts, and ``policies``
    those of the policy in each process. ``plan`` is what was cut so far, relative to the model that the training began
    with, whose forward FLOPs were ``dense_flops`` an image. ``batch_size`` is that of the next epoch, ``cost`` what was
    spent.
    """

    recipe: TrainingRecipe
    data: str
    history: tuple[EpochRecord, ...]
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    scaler: Mapping[str, Any] | None
    average: Mapping[str, Any] | None
    policies: tuple[Mapping[str, Any], ...]
    plan: PrunePlan | None
    batch_size: int
    dense_flops: int
    cost: TrainingCost

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            StorageError: it cannot be written; the state of the epoch before is intact.
        """
        document = {
            "schema_version": SCHEMA_VERSION,
            "recipe": self.recipe.to_document(),
            "data": self.data,
            "history": [asdict(record) for record in self.history],
            "model": dict(self.model),
            "optimizer": dict(self.optimizer),
            "scheduler": dict(self.scheduler),
            "scaler": None if self.scaler is None else dict(self.scaler),
            "average": None if self.average is None else dict(self.average),
            "policies": [dict(policy) for policy in self.policies],
            "plan": None if self.plan is None else self.plan.to_document(),
            "batch_size": self.batch_size,
            "dense_flops": self.dense_flops,
            "cost": self.cost.to_document(),
        }
        with atomic_path(path) as partial:
            try:
                torch.save(document, partial)
            except RuntimeError as error:
                # Torch's writer reports a full disk as a RuntimeError.
                raise StorageError(
                    f"the training state cannot be written ({str(error).splitlines()[0]})",
                    where=str(path),
                    hint="free some space; the epoch before is intact and --resume goes on from it",
                ) from error

    @classmethod
    def load(cls, path: Path) -> "TrainingState":
        """Read it back, unpickling nothing but tensors and plain values.

        Raises:
            InputError: the file is missing, damaged, or of another schema version.
        """
        damaged = "is damaged, or holds no state of a training"
        hint = "delete it and train again without --resume"
        try:
            document = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise InputError(
                "there is no state to resume from", where=str(path), hint="train without --resume"
            ) from error
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise InputError(damaged, where=str(path), hint=hint) from error
        if not isinstance(document, dict) or "schema_version" not in document:
            raise InputError(damaged, where=str(path), hint=hint)
        if document["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"the training state has schema version {document['schema_version']}, this p2d reads {SCHEMA_VERSION}",
                where=str(path),
                hint=hint,
            )
        try:
            return cls(
                recipe=TrainingRecipe.from_document(document["recipe"], where=str(path)),
                data=document["data"],
                history=history_from_documents(document["history"], where=str(path)),
                model=document["model"],
                optimizer=document["optimizer"],
                scheduler=document["scheduler"],
                scaler=document["scaler"],
                average=document["average"],
                policies=tuple(document["policies"]),
                plan=None if document["plan"] is None else PrunePlan.from_document(document["plan"], where=str(path)),
                batch_size=document["batch_size"],
                dense_flops=document["dense_flops"],
                cost=TrainingCost.from_document(document["cost"], where=str(path)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(damaged, where=str(path), hint=hint) from error

    def check_repeats(self, *, recipe: TrainingRecipe, data: str, processes: int | None, where: str) -> None:
        """Refuse to go on with another recipe or data set, or other than the ``processes`` that a policy counted in.

        Raises:
            InputError: one differs; the message says what.
        """
        if changes := recipe.differences(self.recipe):
            raise InputError(f"was trained with another recipe: {', '.join(changes)}", where=where, hint=_REPEAT)
        if data != self.data:
            raise InputError(f"was trained on {self.data}, not on {data}", where=where, hint=_REPEAT)
        if processes is not None and len(self.policies) != processes:
            raise InputError(
                f"was trained and pruned by {len(self.policies)} processes, not by {processes}",
                where=where,
                hint=f"resume with {len(self.policies)}, as each kept what it had counted",
            )

    def check_fits(self, model: Mapping[str, Any], *, where: str) -> None:
        """Refuse to go on with another model; ``model`` is its ``state_dict``, cut by ``plan``.

        Raises:
            InputError: names or shapes differ; the message names the first.
        """
        here = {name: tuple(tensor.shape) for name, tensor in model.items() if isinstance(tensor, Tensor)}
        there = {name: tuple(tensor.shape) for name, tensor in self.model.items() if isinstance(tensor, Tensor)}
        different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        if different:
            name = different[0]
            raise InputError(
                f"holds another model: {len(different)} tensors differ, the first being {name}, "
                f"{_shape(there.get(name))} there and {_shape(here.get(name))} here",
                where=where,
                hint=_REPEAT,
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a scalar"
