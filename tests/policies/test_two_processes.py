import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune2deploy.data.splits import DataSplits
from prune2deploy.graph.rectifiers import activations_of
from prune2deploy.graph.trace import trace
from prune2deploy.policies.activation_density import ActivationDensity, ActivationDensityOptions
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.prunetrain import PruneTrain, PruneTrainOptions
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

PROGRAM = """
import os, sys
import torch
sys.path.insert(0, sys.argv[1])
from shared import outcomes

torch.save(outcomes(), os.path.join(sys.argv[1], f"outcome-{os.environ['RANK']}.out"))
"""

RECIPE = TrainingRecipe(epochs=6, batch_size=8, learning_rate=0.05, warmup_epochs=0)


def make_model() -> nn.Module:
    """No batch norm and no dropout: two processes then compute what one does, up to rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 8, 2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)
        )


def make_splits() -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(62, 2, 2, 2, generator=generator), torch.arange(62) % 3
    images[:, 0, 0, 0] += labels
    train_split = TensorDataset(images[:48], labels[:48])
    return DataSplits(
        name="noise",
        train=train_split,
        evaluation=TensorDataset(images[48:], labels[48:]),
        calibration=train_split,
        class_names=("a", "b", "c"),
        input_shape=(2, 2, 2),
    )


def outcomes() -> dict[str, object]:
    """Train with either method: the weights, and what was found."""
    found: dict[str, object] = {}
    aim = Aim(granule=1)
    for name in ("prunetrain", "activation-density"):
        model = make_model()
        traced = trace(model, torch.zeros(1, 2, 2, 2))
        policy = (
            PruneTrain(traced.graph, aim, PruneTrainOptions(ratio=0.8, interval=2, dead_below=0.05, largest_batch=16))
            if name == "prunetrain"
            else ActivationDensity(
                traced.graph,
                aim,
                ActivationDensityOptions(window=1, epsilon=0.5),
                activations=activations_of(traced),
            )
        )
        result = train(model, make_splits(), RECIPE, policy=policy)
        found[name] = {"model": model.state_dict(), "document": dict(result.findings.document)}
    return found


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_find_and_cut_what_one_does(tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "shared.py").write_text(Path(__file__).read_text())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "program.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"outcome-{rank}.out", weights_only=True) for rank in (0, 1))
    alone = outcomes()
    for name, one in alone.items():
        assert first[name]["document"] == second[name]["document"]
        assert all(torch.equal(first[name]["model"][key], second[name]["model"][key]) for key in first[name]["model"])
        for key, value in one["model"].items():
            torch.testing.assert_close(first[name]["model"][key], value, rtol=1e-3, atol=1e-5)
    pruned, dense = first["prunetrain"]["document"], alone["prunetrain"]["document"]
    assert pruned["lambda"] == pytest.approx(dense["lambda"], rel=1e-5)
    assert [one["widths"] for one in pruned["reconfigurations"]] == [one["widths"] for one in dense["reconfigurations"]]
    assert pruned["reconfigurations"][-1]["removed"] + pruned["reconfigurations"][0]["removed"] > 0
    counted, whole = first["activation-density"]["document"], alone["activation-density"]["document"]
    assert len(counted["rounds"]) > 1
    for ours, theirs in zip(counted["curve"], whole["curve"], strict=True):
        assert ours["densities"] == pytest.approx(theirs["densities"], abs=2e-3)
