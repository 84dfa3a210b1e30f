"""Every method in two processes: the same plan and weights in both, and those of one process with two micro-batches.

Two processes take the halves of each batch that one process takes as its micro-batches, and batch norms see those
halves in both cases. Running statistics are the exception: one process moves them twice a step, and of several
processes those of the first count.
"""

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune2deploy.budget.plan import PrunePlan, fingerprint_of
from prune2deploy.budget.target import Budget
from prune2deploy.data.splits import DataSplits
from prune2deploy.graph.rectifiers import activations_of
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.policies.activation_density import ActivationDensity, ActivationDensityOptions
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.early import Early, EarlyOptions
from prune2deploy.policies.gradual import Gradual, GradualOptions
from prune2deploy.policies.policy import Decision, Moment, NoPruning, Policy, When
from prune2deploy.policies.prunetrain import PruneTrain, PruneTrainOptions
from prune2deploy.policies.single_shot import SingleShot, SingleShotOptions
from prune2deploy.surgery.apply import shapes_of
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe
from prune2deploy.training.state import TrainingState

PROGRAM = """
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[1])
import shared

rank = int(os.environ["RANK"])
outcomes = {name: shared.outcome(name) for name in shared.METHODS}
outcomes["averaged"] = shared.outcome("3sp", recipe=replace(shared.RECIPE, ema_decay=0.8))
outcomes["first step"] = shared.first_step()
for name in shared.RESUMED:
    outcomes[f"{name}, resumed"] = shared.resumed(name, folder / f"{name}.state")
torch.save(outcomes, folder / f"outcomes-{rank}.out")
"""

RECIPE = TrainingRecipe(epochs=6, batch_size=16, learning_rate=0.05, warmup_epochs=0, seed=2)
AIM = Aim(budget=Budget(flops=0.5), granule=1)


class Growing(NoPruning):
    """Cuts nothing, and lets the batch grow to one and a half of itself after two epochs."""

    def decide(self, moment):
        if moment.when is not When.AFTER_EPOCH or moment.epoch != 2:
            return None
        plan = PrunePlan(fingerprint=fingerprint_of(shapes_of(moment.model)), entries=())
        return Decision(plan=plan, batch_factor=1.5)


Method = Callable[[Trace], Policy]
METHODS: dict[str, Method] = {
    "none": lambda traced: NoPruning(),
    "growing": lambda traced: Growing(),
    "3sp": lambda traced: SingleShot(traced.graph, AIM, SingleShotOptions(images=32)),
    "3sp by fisher": lambda traced: SingleShot(
        traced.graph,
        AIM,
        SingleShotOptions(images=13, criterion="fisher"),  # halves of unequal size
    ),
    "epi l2": lambda traced: Early(traced.graph, AIM, EarlyOptions(window=1, threshold=0.8)),
    "epi taylor": lambda traced: Early(traced.graph, AIM, EarlyOptions(criterion="taylor", prune_epoch=2)),
    "prunetrain": lambda traced: PruneTrain(
        traced.graph, Aim(granule=1), PruneTrainOptions(ratio=0.8, interval=2, dead_below=2e-2)
    ),
    "activation density": lambda traced: ActivationDensity(
        traced.graph,
        Aim(granule=1),
        ActivationDensityOptions(window=1, epsilon=0.2, accuracy_drop=1.0),
        activations=activations_of(traced),
    ),
    "activation density, fresh": lambda traced: ActivationDensity(
        traced.graph,
        Aim(granule=1),
        ActivationDensityOptions(window=1, epsilon=0.2, accuracy_drop=1.0, keep="reinitialise", max_rounds=1),
        activations=activations_of(traced),
    ),
    "gradual fisher": lambda traced: Gradual(traced.graph, AIM, GradualOptions(every_steps=4)),
    "gradual taylor": lambda traced: Gradual(traced.graph, AIM, GradualOptions(criterion="taylor", cuts=2)),
}
RESUMED = ["epi l2", "prunetrain", "activation density", "gradual fisher", "gradual taylor"]
CUTS = [name for name in METHODS if name not in ("none", "growing")]


class Block(nn.Module):
    """Two convolutions with batch norms beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 10, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(10)
        self.inner = nn.Conv2d(10, 12, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, 10, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(10)
        self.classifier = nn.Linear(10, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = self.stem_norm(self.stem(images)).relu()
        hidden = self.inner_norm(self.inner(stream)).relu()
        return self.classifier((stream + self.outer_norm(self.outer(hidden))).relu().mean(dim=(2, 3)))


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block()


def make_splits() -> DataSplits:
    """Sizes that divide evenly: no batch is filled up."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 3
    images = torch.randn(64, 1, 4, 4, generator=generator)
    images[:, 0, 0] += 2 * labels[:, None]
    whole = TensorDataset(images[:48], labels[:48])
    rest = TensorDataset(images[48:], labels[48:])
    return DataSplits(
        name="blobs",
        train=whole,
        evaluation=rest,
        calibration=whole,
        class_names=("a", "b", "c"),
        input_shape=(1, 4, 4),
    )


def outcome(name: str, *, method: Method | None = None, recipe: TrainingRecipe = RECIPE, **options: object) -> dict:
    """What a training under a method gives, on this process."""
    model = make_model()
    policy = (method or METHODS[name])(trace(model, torch.zeros(1, 1, 4, 4)))
    result = train(model, make_splits(), recipe, policy=policy, reinitialise=redraw, **options)
    return {
        "weights": {key: value.clone() for key, value in model.state_dict().items()},
        "plan": None if result.plan is None else result.plan.to_document(),
        "losses": [record.loss for record in result.history],
        "batches": [record.batch_size for record in result.history],
        "accuracy": result.accuracy,
        "notes": list(result.findings.notes),
    }


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The training ends here, in all processes."""


def resumed(name: str, state_path: Path) -> dict:
    """The outcome of a training that was stopped in its fourth epoch and resumed."""

    def stopping(traced: Trace) -> Policy:
        policy = METHODS[name](traced)
        decide = policy.decide

        def decide_or_stop(moment: Moment) -> Decision | None:
            if moment.when is When.AFTER_STEP and moment.step == 11:
                raise Stopped
            return decide(moment)

        policy.decide = decide_or_stop
        return policy

    with contextlib.suppress(Stopped):
        outcome(name, method=stopping, state_path=state_path)
    assert len(TrainingState.load(state_path).history) == 3
    return outcome(name, state_path=state_path, resume=True)


def redraw(model: nn.Module) -> None:
    """All weights anew, alike in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


def first_step() -> dict:
    """Running statistics after one step, and what the first convolution made of this process's share of it."""

    class Watch(NoPruning):
        def observe(self, step):
            with torch.no_grad():
                self.seen = step.model.stem(step.images).mean(dim=(0, 2, 3))

    model, watch = make_model(), Watch()
    splits = make_splits()
    recipe = TrainingRecipe(epochs=1, batch_size=48, learning_rate=1e-9, warmup_epochs=0)
    train(model, splits, recipe, policy=watch)
    return {"seen": watch.seen, "running": model.stem_norm.running_mean.clone()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The outcomes of both processes, of all methods in one pair of processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
    (folder / "shared.py").write_text(Path(__file__).read_text())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(folder / "program.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"outcomes-{rank}.out", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one():
    """The outcomes of one process."""
    recipe = TrainingRecipe.from_document({**RECIPE.to_document(), "micro_batches": 2})
    return {name: outcome(name, recipe=recipe) for name in METHODS}


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed"),
]


@pytest.mark.parametrize("name", METHODS)
def test_both_processes_end_with_the_same_plan_weights_and_statistics(name, two):
    first, second = (outcomes[name] for outcomes in two)
    assert first["plan"] == second["plan"]
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert {key: first[key] for key in ("losses", "batches", "accuracy", "notes")} == {
        key: second[key] for key in ("losses", "batches", "accuracy", "notes")
    }


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_prune_and_train_as_one_with_two_micro_batches(name, two, one):
    found, expected = two[0][name], one[name]
    assert _kept(found) == _kept(expected)
    assert found["batches"] == expected["batches"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    for key, value in expected["weights"].items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(found["weights"][key], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", CUTS)
def test_every_method_cuts_here(name, two):
    """Without this, the tests above would compare trainings that nothing happened in."""
    assert any(len(entry[-1]) < entry[-2] for entry in _kept(two[0][name]))


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_in_two_processes_gives_the_same_bits(name, two):
    """Also where each process had counted what was not yet added up."""
    for outcomes in two:
        whole, resumed = outcomes[name], outcomes[f"{name}, resumed"]
        assert _kept(resumed) == _kept(whole)
        assert all(torch.equal(resumed["weights"][key], whole["weights"][key]) for key in whole["weights"])
        assert resumed["losses"] == whole["losses"]
        assert resumed["accuracy"] == whole["accuracy"]


def test_averaged_weights_and_statistics_are_alike_in_both(two):
    first, second = (outcomes["averaged"] for outcomes in two)
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert not torch.equal(first["weights"]["classifier.weight"], two[0]["3sp"]["weights"]["classifier.weight"])
    assert first["accuracy"] == second["accuracy"]


def test_a_batch_grows_in_both(two):
    assert two[0]["growing"]["batches"] == [16, 16, 24, 24, 24, 24]


def test_running_statistics_are_those_of_the_first_process(two):
    first, second = (outcomes["first step"] for outcomes in two)
    assert not torch.allclose(first["seen"], second["seen"], atol=1e-3)
    torch.testing.assert_close(first["running"], 0.1 * first["seen"])
    assert torch.equal(first["running"], second["running"])


def _kept(outcome: dict) -> list[tuple]:
    if outcome["plan"] is None:
        return []
    plan = PrunePlan.from_document(outcome["plan"])
    return [(entry.tensor, entry.dim, entry.dense_size, entry.kept) for entry in plan.entries]
