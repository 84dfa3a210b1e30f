"""Methods that look at data, in two processes: each sees its own half, and both cut alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune2deploy.budget.target import Budget
from prune2deploy.data.splits import DataSplits
from prune2deploy.graph.trace import trace
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.early import Early, EarlyOptions
from prune2deploy.policies.policy import NoPruning
from prune2deploy.policies.single_shot import SingleShot, SingleShotOptions
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

PROGRAM = """
import os, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from shared import outcomes

torch.save(outcomes(), Path(sys.argv[1]) / f"outcome-{os.environ['RANK']}.out")
"""
RECIPE = TrainingRecipe(epochs=3, batch_size=8, learning_rate=0.05, warmup_epochs=0)


def make_model() -> nn.Module:
    """No batch norm and no dropout: two processes then compute what one does, up to rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 9, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(9, 12, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12 * 16, 3),
        )


def make_splits() -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(38, 1, 4, 4, generator=generator), torch.arange(38) % 3
    train_split = TensorDataset(images[:24], labels[:24])
    return DataSplits(
        name="noise",
        train=train_split,
        evaluation=TensorDataset(images[24:], labels[24:]),
        calibration=train_split,
        class_names=("a", "b", "c"),
        input_shape=(1, 4, 4),
    )


def policies() -> dict[str, NoPruning]:
    graph = trace(make_model(), torch.zeros(1, 1, 4, 4)).graph
    aim = Aim(budget=Budget(flops=0.5), granule=1)
    return {
        "3sp": SingleShot(graph, aim, SingleShotOptions(images=13)),
        "3sp by fisher": SingleShot(graph, aim, SingleShotOptions(images=13, criterion="fisher")),
        "epi by taylor": Early(graph, aim, EarlyOptions(criterion="taylor", prune_epoch=1)),
        "epi by l2": Early(graph, aim, EarlyOptions(window=1, threshold=0.5)),
    }


def outcomes() -> dict[str, dict]:
    """What each method leaves: the weights, the plan's indices and what the policy thinks is left."""
    found = {}
    for name, policy in policies().items():
        model = make_model()
        plan = train(model, make_splits(), RECIPE, policy=policy).plan
        kept = {f"{entry.tensor} {entry.dim}": list(entry.kept) for entry in plan.entries}
        standing = policy.state_dict()["standing"]["kept"]
        found[name] = {"weights": model.state_dict(), "kept": kept, "standing": standing}
    return found


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_cut_alike_and_as_one_does(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "shared.py").write_text(Path(__file__).read_text())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "program.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"outcome-{rank}.out", weights_only=True) for rank in (0, 1))
    alone = outcomes()
    for name in policies():
        assert first[name]["kept"] == second[name]["kept"] == alone[name]["kept"], name
        assert torch.equal(first[name]["standing"], second[name]["standing"])
        assert not first[name]["standing"].all()
        for key, value in first[name]["weights"].items():
            assert torch.equal(value, second[name]["weights"][key])
            torch.testing.assert_close(value, alone[name]["weights"][key], rtol=1e-3, atol=1e-5)
