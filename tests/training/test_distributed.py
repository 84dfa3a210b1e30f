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
from prune2deploy.training.evaluate import evaluate
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

PROGRAM = """
import os
import sys
from pathlib import Path
import torch
from prune2deploy.budget.plan import KeptIndices, PrunePlan, fingerprint_of
from prune2deploy.policies.policy import Decision, NoPruning, When
from prune2deploy.surgery.apply import shapes_of
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe
sys.path.insert(0, sys.argv[1])
RANK = int(os.environ["RANK"])
from shared import RECIPE, make_model, make_splits

class CutOnMain(NoPruning):
    def decide(self, moment):
        if moment.when is not When.AFTER_EPOCH or moment.epoch != 1 or RANK != 0:
            return None
        entries = [("1.weight", 0), ("1.bias", 0), ("3.weight", 1)]
        return Decision(plan=PrunePlan(
            fingerprint=fingerprint_of(shapes_of(moment.model)),
            entries=tuple(KeptIndices(tensor=name, dim=dim, dense_size=6, kept=(0, 2, 5)) for name, dim in entries),
        ))

folder = Path(sys.argv[1])
plain = make_model()
result = train(plain, make_splits(), RECIPE, state_path=folder / f"plain-{RANK}.pt")
cut = make_model()
pruned = train(cut, make_splits(), RECIPE, policy=CutOnMain())
outcome = {
    "plain": plain.state_dict(), "cut": cut.state_dict(), "processes": result.processes,
    "losses": [record.loss for record in result.history], "accuracy": result.accuracy, "cut accuracy": pruned.accuracy,
}
torch.save(outcome, folder / f"outcome-{RANK}.out")
"""

RECIPE = TrainingRecipe(epochs=3, batch_size=8, learning_rate=0.05, warmup_epochs=0)


def make_model() -> nn.Module:
    """No batch norm and no dropout: two processes then compute what one does, up to rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def make_splits() -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(38, 2, 2, 2, generator=generator), torch.arange(38) % 3
    train_split = TensorDataset(images[:24], labels[:24])
    return DataSplits(
        name="noise",
        train=train_split,
        evaluation=TensorDataset(images[24:], labels[24:]),
        calibration=train_split,
        class_names=("a", "b", "c"),
        input_shape=(2, 2, 2),
    )


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_train_what_one_does_and_cut_alike(tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "shared.py").write_text(Path(__file__).read_text())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "program.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"outcome-{rank}.out", weights_only=True) for rank in (0, 1))

    assert first["processes"] == 2
    assert [path.name for path in tmp_path.glob("*.pt")] == ["plain-0.pt"]
    for name in ("plain", "cut"):
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name])
    assert {key: value for key, value in first.items() if "accuracy" in key or key == "losses"} == {
        key: value for key, value in second.items() if "accuracy" in key or key == "losses"
    }

    alone = make_model()
    result = train(alone, make_splits(), RECIPE)
    assert first["accuracy"] == result.accuracy
    assert first["losses"] == pytest.approx([record.loss for record in result.history], rel=1e-5)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(first["plain"][key], value, rtol=1e-4, atol=1e-6)

    assert first["cut"]["1.weight"].shape == (3, 8)
    sliced = make_model()
    sliced[1], sliced[3] = nn.Linear(8, 3), nn.Linear(3, 3)
    sliced.load_state_dict(first["cut"])
    assert evaluate(sliced, make_splits().evaluation).accuracy == first["cut accuracy"]
