"""From the user's choices to training recipes."""

from dataclasses import asdict
from typing import Any

from prune2deploy.pipeline.requests import TrainingChoices
from prune2deploy.training.recipe import TrainingRecipe, fine_tuning_defaults


def scratch_recipe(choices: TrainingChoices, *, seed: int, epochs: int | None = None) -> TrainingRecipe:
    """The recipe that trains from scratch, with what the user fixed; ``epochs`` replaces the user's number."""
    return _complete({**_chosen(choices), "seed": seed} | ({} if epochs is None else {"epochs": epochs}), tuned=False)


def fine_tuning_recipe(choices: TrainingChoices, *, seed: int) -> TrainingRecipe:
    """The recipe that mends a pruned network, with what the user fixed."""
    return _complete({**_chosen(choices), "seed": seed}, tuned=True)


def _complete(chosen: dict[str, Any], *, tuned: bool) -> TrainingRecipe:
    if chosen.get("optimizer") == "adamw":
        # rates and decays for SGD are far off for AdamW
        chosen = {"learning_rate": 1e-4 if tuned else 1e-3, "weight_decay": 0.05, **chosen}
    if chosen.get("schedule") == "step":
        epochs = chosen.get("epochs", (fine_tuning_defaults() if tuned else TrainingRecipe()).epochs)
        chosen["milestones"] = tuple(sorted({max(1, epochs // 2), max(2, epochs * 3 // 4)}))
    return fine_tuning_defaults(**chosen) if tuned else TrainingRecipe.from_document(chosen)


def _chosen(choices: TrainingChoices) -> dict[str, Any]:
    return {name: value for name, value in asdict(choices).items() if value is not None}
