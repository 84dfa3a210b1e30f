"""What keeping channels should be worth to the solver: accuracy at the same FLOPs, by four answers and two rankings.

    python benchmarks/worth.py --work worth-work [--seeds 3] [--networks resnet8_wide,resnet20]

A small network is trained on textures, cut to 0.33 of the FLOPs by each answer (l2 scores, granule 4, so that it can be
expressed), and fine-tuned for five epochs in the same way. What is in the result already is not run again. Writes
benchmarks/results/worth.json; the figures are in docs/decisions/0024-worth.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.knapsack import Bound, most_worth
from prune2deploy.budget.ladder import Ladder
from prune2deploy.budget.priced import priced_flops
from prune2deploy.budget.target import Budget
from prune2deploy.importance.criteria import criterion_named, score_channels
from prune2deploy.pipeline.backends import MODULE, find_channels
from prune2deploy.pipeline.requests import TrainingChoices, TrainRequest
from prune2deploy.pipeline.subject import load_subject_data, open_subject
from prune2deploy.pipeline.train import run_train
from prune2deploy.storage import read_json, write_json
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.training.evaluate import evaluate
from prune2deploy.training.loop import train
from prune2deploy.training.recalibrate import recalibrate_batchnorm
from prune2deploy.training.recipe import fine_tuning_defaults

RESULT = Path(__file__).parent / "results" / "worth.json"
FLOPS = 0.33
GRANULE = 4
EPOCHS, TUNING_EPOCHS = 12, 5


def main() -> None:
    """Run what is missing, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("worth-work"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", default="resnet8_wide,resnet20")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    document: dict[str, Any] = read_json(arguments.out) if arguments.out.is_file() else {"cells": {}}
    for seed in range(arguments.seeds):
        for network in arguments.networks.split(","):
            key = f"{network}/{seed}"
            if key not in document["cells"]:
                document["cells"][key] = accuracies(network, seed, arguments.work)
                write_json(arguments.out, document)
                print(key, document["cells"][key], flush=True)
    for network in arguments.networks.split(","):
        cells = [cell for key, cell in document["cells"].items() if key.startswith(f"{network}/")]
        print(network, {name: f"{mean(cell[name]['accuracy'] for cell in cells):.3f}" for name in cells[0]})


def accuracies(network: str, seed: int, work: Path) -> dict[str, dict[str, float]]:
    """The accuracy of the dense network, and of each cut right after it and after fine-tuning."""
    folder = work / f"{network}-{seed}"
    if not (folder / "dense").is_dir():
        choices = TrainingChoices(epochs=EPOCHS)
        run_train(TrainRequest(model=network, data="textures", training=choices, seed=seed, out=folder))
    subject = open_subject(folder / "dense", model=None, input_shape=None, trust_pickle=False)
    splits = load_subject_data(subject, None)
    assert splits is not None
    graph = find_channels(subject.model, (torch.randn(1, *subject.input_shape),), backend=MODULE).graph
    scores = score_channels(graph, subject.model, None, criterion=criterion_named("l2"), seed=seed)
    ladder = Ladder.of(graph, scores, GRANULE)
    found = {"dense": {"accuracy": evaluate(subject.model, splits.evaluation).accuracy}}
    for name, counts in plans(ladder):
        kept = ladder.mask(ladder.filled(counts, Budget(flops=FLOPS)))
        model = pruned_copy(subject.model, plan_from_mask(graph, kept))
        recalibrate_batchnorm(model, splits.calibration, seed=seed)
        after = evaluate(model, splits.evaluation).accuracy
        tuned = train(model, splits, fine_tuning_defaults(epochs=TUNING_EPOCHS, seed=seed))
        found[name] = {"after_cut": after, "accuracy": tuned.accuracy}
    return found


def plans(ladder: Ladder) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The counts of each group by each answer, within the FLOPs."""
    graph, budget = ladder.graph, Budget(flops=FLOPS)
    yield "global", ladder.global_counts(budget)
    yield "per-layer", ladder.uniform_counts(budget)
    kept = [
        np.cumsum(scores)[np.array(allowed) - 1]
        for scores, allowed in zip(ladder.sorted_scores, ladder.allowed, strict=True)
    ]
    shares = [sums / sums[-1] for sums in kept]
    answers = {
        "sum of scores": kept,
        "log by channels": [sums[-1] * np.log(share) for sums, share in zip(kept, shares, strict=True)],
        "log": [np.log(share) for share in shares],
        "log by FLOPs": [
            np.array([ladder.worth(group, count) for count in allowed]) for group, allowed in enumerate(ladder.allowed)
        ],
    }
    price = priced_flops(graph.cost)
    for name, worth in answers.items():
        found = most_worth(
            graph, ladder.allowed, worth, [Bound(price=price, most=FLOPS * price.dense)], seconds=30, gap=0.002
        )
        assert found is not None
        yield name, np.array(found.counts)


if __name__ == "__main__":
    main()
