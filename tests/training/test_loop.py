import copy
import dataclasses
import math
import random
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune2deploy.budget.plan import KeptIndices, PrunePlan, fingerprint_of
from prune2deploy.errors import DataError, EngineError, InputError, ModelError, StorageError
from prune2deploy.policies.policy import Decision, NoPruning, When
from prune2deploy.progress import SILENT
from prune2deploy.surgery.apply import shapes_of
from prune2deploy.training.evaluate import evaluate
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe
from prune2deploy.training.state import TrainingState

RECIPE = TrainingRecipe(epochs=4, batch_size=8, learning_rate=0.05, seed=3)


class Interrupt(NoPruning):
    """Raises where a user or the system would stop the training."""

    def __init__(self, *, step, error=KeyboardInterrupt):
        self.step, self.error = step, error

    def decide(self, moment):
        if moment.when is When.AFTER_STEP and moment.step == self.step:
            raise self.error


class Planned(NoPruning):
    """Cuts the given channels of the convolution, counted in the model as it stands, at the given moments."""

    def __init__(self, plans):
        self.plans = plans
        self.asked = []
        self.restored = None

    def decide(self, moment):
        key = (moment.when, moment.epoch if moment.when is not When.AFTER_STEP else moment.step)
        self.asked.append(key)
        return Decision(plan=conv_plan(moment.model, self.plans[key])) if key in self.plans else None

    def state_dict(self):
        return {"asked": len(self.asked), "tensor": torch.ones(2)}

    def load_state_dict(self, state):
        self.restored = state


def conv_plan(model, kept):
    width = model.conv.out_channels
    kept = tuple(range(width)) if kept == "all" else kept
    axes = [("conv.weight", 0), ("classifier.weight", 1)]
    axes += [(f"norm.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")]
    return PrunePlan(
        fingerprint=fingerprint_of(shapes_of(model)),
        entries=tuple(KeptIndices(tensor=name, dim=dim, dense_size=width, kept=kept) for name, dim in axes),
    )


def same_weights(first, second):
    here, there = first.state_dict(), second.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def without_seconds(history):
    return [dataclasses.replace(record, seconds=0.0) for record in history]


def test_training_learns_and_records_every_epoch(net, splits_of):
    model, splits = net(8), splits_of(60)
    recipe = TrainingRecipe(epochs=12, batch_size=10, learning_rate=0.1)
    result = train(model, splits, recipe)
    assert result.accuracy > 0.9
    assert [record.epoch for record in result.history] == list(range(1, 13))
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].accuracy == result.accuracy
    assert result.history[-1].learning_rate < result.history[5].learning_rate
    assert result.history[0].parameters == sum(parameter.numel() for parameter in model.parameters())
    assert result.images_per_second == pytest.approx(12 * 60 / result.seconds)
    assert (result.device, result.processes, result.plan, result.resumed_at) == ("cpu", 1, None, 0)
    after = evaluate(model, splits.evaluation)
    assert (after.accuracy, after.loss) == (result.accuracy, pytest.approx(result.loss))
    document = result.to_document()
    assert TrainingRecipe.from_document(document["recipe"]) == recipe
    assert document["history"][0].keys() >= {"epoch", "loss", "accuracy", "learning_rate", "seconds"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_weights_and_another_does_not(net, splits, optimizer):
    first, second, other = net(), net(), net()
    recipe = dataclasses.replace(RECIPE, epochs=2, optimizer=optimizer)
    results = [train(model, splits, recipe) for model in (first, second)]
    train(other, splits, dataclasses.replace(recipe, seed=4))
    assert same_weights(first, second)
    assert without_seconds(results[0].history) == without_seconds(results[1].history)
    assert not same_weights(first, other)


def test_training_leaves_generators_flags_and_attributes_of_the_caller_alone(net, splits):
    model = net()
    model.eval()
    attributes = set(model.__dict__)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    train(model, splits, dataclasses.replace(RECIPE, epochs=1, mixed_precision="bf16"))
    assert not model.training
    assert not model.norm.training
    assert set(model.__dict__) == attributes
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.random.get_rng_state(), states[2])
    assert model(torch.zeros(1, 1, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize("stop_at", [1, 3, 5, 9, 12])
@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        dataclasses.replace(RECIPE, optimizer="adamw", schedule="step", milestones=(2, 3), label_smoothing=0.1),
        dataclasses.replace(RECIPE, schedule="constant", warmup_epochs=0, gradient_clip=0.5, mixed_precision="bf16"),
    ],
    ids=["cosine", "adamw-step", "bf16-clipped"],
)
def test_an_interrupted_training_resumes_to_the_same_bits(net, splits, tmp_path, stop_at, recipe):
    whole, resumed = net(), net()
    uninterrupted = train(whole, splits, recipe)
    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(net(), splits, recipe, state_path=state, policy=Interrupt(step=stop_at))
    assert state.exists() == (stop_at > 3)
    torch.rand(3)
    result = train(resumed, splits, recipe, state_path=state, resume=True)
    assert result.resumed_at == (stop_at - 1) // 3
    assert same_weights(whole, resumed)
    assert without_seconds(result.history) == without_seconds(uninterrupted.history)
    assert (result.accuracy, result.loss) == (uninterrupted.accuracy, uninterrupted.loss)


def test_a_finished_training_resumes_at_once(net, splits, tmp_path):
    state = tmp_path / "state.pt"
    whole, resumed = net(), net()
    first = train(whole, splits, RECIPE, state_path=state)
    written = state.stat().st_mtime_ns
    again = train(resumed, splits, RECIPE, state_path=state, resume=True, policy=Interrupt(step=1))
    assert same_weights(whole, resumed)
    assert again.history == first.history
    assert (again.accuracy, again.loss, again.resumed_at) == (first.accuracy, first.loss, 4)
    assert state.stat().st_mtime_ns == written


def test_without_resume_an_old_state_is_replaced(net, splits, tmp_path):
    state = tmp_path / "state.pt"
    train(net(), splits, dataclasses.replace(RECIPE, epochs=1, seed=9), state_path=state)
    train(net(), splits, dataclasses.replace(RECIPE, epochs=1), state_path=state)
    assert TrainingState.load(state).recipe.seed == RECIPE.seed


def test_a_killed_process_resumes_to_the_same_bits(net, splits, tmp_path):
    """A real SIGKILL in the middle of the third epoch."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import importlib.util, os, signal, sys
            from pathlib import Path
            import torch
            torch.set_num_threads({torch.get_num_threads()})
            spec = importlib.util.spec_from_file_location("blobs", {str(Path(__file__).with_name("conftest.py"))!r})
            blobs = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(blobs)
            from prune2deploy.policies.policy import NoPruning, When
            from prune2deploy.training.loop import train
            from prune2deploy.training.recipe import TrainingRecipe

            class Kill(NoPruning):
                def decide(self, moment):
                    if moment.when is When.AFTER_STEP and moment.step == 8:
                        os.kill(os.getpid(), signal.SIGKILL)

            recipe = TrainingRecipe.from_document({RECIPE.to_document()})
            train(blobs.make_net(), blobs.make_splits(), recipe, state_path=Path(sys.argv[1]), policy=Kill())
            """
        )
    )
    state = tmp_path / "state.pt"
    killed = subprocess.run([sys.executable, str(program), str(state)], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole, resumed = net(), net()
    train(whole, splits, RECIPE)
    assert train(resumed, splits, RECIPE, state_path=state, resume=True).resumed_at == 2
    assert same_weights(whole, resumed)


@pytest.fixture
def state(net, splits, tmp_path):
    path = tmp_path / "state.pt"
    train(net(), splits, dataclasses.replace(RECIPE, epochs=1), state_path=path)
    return path


def test_a_state_of_another_recipe_is_refused_and_the_model_stays(net, splits, state):
    model, untouched = net(), net()
    recipe = dataclasses.replace(RECIPE, epochs=9, learning_rate=0.2)
    with pytest.raises(InputError, match=r"another recipe: epochs 9 instead of 1, learning_rate 0.2 instead of 0.05"):
        train(model, splits, recipe, state_path=state, resume=True)
    assert same_weights(model, untouched)


def test_a_state_of_another_model_is_refused(net, splits, state):
    with pytest.raises(
        InputError, match=r"another model: 6 tensors differ.*conv.weight, 4x1x3x3 there and 5x1x3x3 here"
    ):
        train(net(5), splits, dataclasses.replace(RECIPE, epochs=1), state_path=state, resume=True)


def test_a_state_of_other_data_is_refused(net, splits_of, state):
    other = splits_of(name="other", train_size=21)
    with pytest.raises(InputError, match=r"trained on blobs \(20 \+ 12 images\), not on other \(21 \+ 12 images\)"):
        train(net(), other, dataclasses.replace(RECIPE, epochs=1), state_path=state, resume=True)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped", "other document", "no history", "newer"])
def test_a_damaged_state_is_refused_in_one_line(net, splits, state, damage):
    content = state.read_bytes()
    if damage == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        state.write_bytes(b"")
    elif damage == "text":
        state.write_text("not a checkpoint")
    elif damage == "flipped":
        start = content.index(b"PK\x03\x04") + 80
        state.write_bytes(
            content[:start] + bytes(byte ^ 0xFF for byte in content[start : start + 60]) + content[start + 60 :]
        )
    elif damage == "other document":
        torch.save({"weights": torch.ones(2)}, state)
    else:
        document = torch.load(state, weights_only=True)
        document |= {"history": [{"epoch": 1}]} if damage == "no history" else {"schema_version": 99}
        torch.save(document, state)
    with pytest.raises(InputError, match=r"state.pt: .*(damaged|schema version 99)") as caught:
        train(net(), splits, dataclasses.replace(RECIPE, epochs=1), state_path=state, resume=True)
    assert "\n" not in str(caught.value)


def test_a_state_that_would_run_code_is_refused(net, splits, tmp_path):
    path, witness = tmp_path / "state.pt", tmp_path / "witness"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (witness,))

    torch.save({"schema_version": 1, "recipe": Hostile()}, path)
    with pytest.raises(InputError, match="damaged"):
        train(net(), splits, RECIPE, state_path=path, resume=True)
    assert not witness.exists()


def test_resuming_needs_a_place_but_not_yet_a_file(net, splits, tmp_path):
    with pytest.raises(InputError, match="no file to resume from"):
        train(net(), splits, RECIPE, resume=True)
    result = train(net(), splits, RECIPE, state_path=tmp_path / "new" / "state.pt", resume=True)
    assert result.resumed_at == 0


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(net, splits, tmp_path):
    class Explode(NoPruning):
        def observe(self, step):
            if step.step == 7:
                step.model.conv.weight.grad.fill_(math.inf)

    state, model = tmp_path / "state.pt", net()
    with pytest.raises(InputError, match=r"epoch 3; the state after epoch 2 is kept; pass a --lr below 0.05"):
        train(model, splits, RECIPE, state_path=state, policy=Explode())
    kept = TrainingState.load(state)
    assert len(kept.history) == 2
    assert all(tensor.isfinite().all() for tensor in kept.model.values())
    assert model.training


def test_weights_that_the_last_step_spoils_are_not_saved(net, splits, tmp_path):
    class Explode(NoPruning):
        def observe(self, step):
            if step.step == 2:
                step.model.classifier.weight.grad.fill_(math.nan)

    with pytest.raises(InputError, match="no longer a finite number in epoch 1;"):
        train(net(), splits, RECIPE, state_path=tmp_path / "state.pt", policy=Explode())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_storage_error_and_keeps_the_state_before(net, splits, tmp_path):
    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(net(), splits, RECIPE, state_path=state, policy=Interrupt(step=4))
    before = state.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"state.pt: "):
            train(net(), splits, RECIPE, state_path=state, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert state.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_plan_that_removes_nothing_does_not_disturb_the_training(net, splits):
    plain, planned = net(), net()
    moments = {(When.BEFORE_TRAINING, 0): "all", (When.AFTER_STEP, 4): "all"}
    moments |= {(When.AFTER_EPOCH, epoch): "all" for epoch in range(1, 5)}
    expected = train(plain, splits, RECIPE)
    result = train(planned, splits, RECIPE, policy=Planned(moments))
    assert same_weights(plain, planned)
    assert without_seconds(result.history) == without_seconds(expected.history)
    assert result.plan.is_empty


def test_a_policy_is_asked_at_every_moment_and_sees_every_step(net, splits):
    class Watching(Planned):
        seen = ()

        def observe(self, step):
            assert step.logits.shape == (len(step.images), 3)
            assert not step.logits.requires_grad
            assert step.model.conv.weight.grad is not None
            self.seen = (*self.seen, (step.epoch, step.step, len(step.labels)))

    policy = Watching({})
    train(net(), splits, dataclasses.replace(RECIPE, epochs=2), policy=policy)
    epochs = [
        [*((When.AFTER_STEP, 3 * epoch + step) for step in (1, 2, 3)), (When.AFTER_EPOCH, epoch + 1)]
        for epoch in range(2)
    ]
    assert policy.asked == [(When.BEFORE_TRAINING, 0), *epochs[0], *epochs[1]]
    assert policy.seen == tuple((step // 3, step, 4 if step % 3 == 2 else 8) for step in range(6))


def test_the_penalty_of_a_policy_is_trained_but_not_reported(net, splits):
    class Shrink(NoPruning):
        def penalty(self, model, loss):
            return 10.0 * model.conv.weight.square().sum()

    recipe = dataclasses.replace(RECIPE, schedule="constant", warmup_epochs=0)
    plain, shrunk = net(), net()
    train(plain, splits, recipe)
    result = train(shrunk, splits, recipe, policy=Shrink())
    assert shrunk.conv.weight.norm() < 0.5 * plain.conv.weight.norm()
    assert result.history[0].loss < 3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("moment", [(When.BEFORE_TRAINING, 0), (When.AFTER_STEP, 4), (When.AFTER_EPOCH, 2)])
def test_a_plan_is_cut_in_the_middle_of_training(net, splits, optimizer, moment):
    model = net()
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer)
    result = train(model, splits, recipe, policy=Planned({moment: (0, 3)}))
    assert model.conv.weight.shape == (2, 1, 3, 3)
    assert model.conv.out_channels == model.norm.num_features == model.classifier.in_features == 2
    assert {entry.tensor: entry.kept for entry in result.plan.entries}["conv.weight"] == (0, 3)
    assert len(result.history) == 4
    assert result.history[0].parameters > result.history[-1].parameters or moment == (When.BEFORE_TRAINING, 0)
    assert evaluate(model, splits.evaluation).accuracy == result.accuracy


def test_momentum_is_sliced_with_the_weights(net, splits, tmp_path):
    """A cut at the end of an epoch: the state that is kept holds the momentum of the surviving channels."""
    recipe = dataclasses.replace(RECIPE, epochs=1)
    train(net(), splits, recipe, state_path=tmp_path / "whole.pt")
    cut = Planned({(When.AFTER_EPOCH, 1): (1, 2)})
    train(net(), splits, recipe, state_path=tmp_path / "cut.pt", policy=cut)
    whole, sliced = (TrainingState.load(tmp_path / name) for name in ("whole.pt", "cut.pt"))
    names = [group["params"] for group in whole.optimizer["param_groups"]]
    assert [group["params"] for group in sliced.optimizer["param_groups"]] == names
    momenta = [{n: s["momentum_buffer"] for n, s in state.optimizer["state"].items()} for state in (whole, sliced)]
    assert torch.equal(momenta[1][0], momenta[0][0][1:3])
    assert torch.equal(sliced.model["conv.weight"], whole.model["conv.weight"][1:3])
    assert momenta[0][0].abs().min() > 0


def test_a_training_that_was_cut_resumes_to_the_same_bits(net, splits, tmp_path):
    plans = {(When.AFTER_STEP, 2): (0, 2, 3), (When.AFTER_EPOCH, 2): (0, 1)}
    whole, resumed = net(), net()
    uninterrupted = train(whole, splits, RECIPE, policy=Planned(plans))

    class Stopped(Planned):
        def decide(self, moment):
            if moment.step == 8:
                raise KeyboardInterrupt
            return super().decide(moment)

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(net(), splits, RECIPE, state_path=state, policy=Stopped(plans))
    policy = Planned({key: kept for key, kept in plans.items() if key[1] > 2})
    result = train(resumed, splits, RECIPE, state_path=state, resume=True, policy=policy)
    assert same_weights(whole, resumed)
    assert without_seconds(result.history) == without_seconds(uninterrupted.history)
    assert result.plan == uninterrupted.plan
    assert {entry.tensor: entry.kept for entry in result.plan.entries}["conv.weight"] == (0, 2)
    assert policy.restored["tensor"].tolist() == [1, 1]
    assert (When.BEFORE_TRAINING, 0) not in policy.asked


def test_a_cut_at_the_very_end_is_evaluated(net, splits):
    model = net()
    result = train(model, splits, RECIPE, policy=Planned({(When.AFTER_EPOCH, 4): (0,)}))
    found = evaluate(model, splits.evaluation)
    assert (result.accuracy, result.loss) == (found.accuracy, pytest.approx(found.loss))
    assert result.loss != pytest.approx(evaluate_last(result))


def evaluate_last(result):
    return result.history[-1].loss


def test_a_last_batch_of_one_image_is_left_out(net, splits_of):
    class Sizes(NoPruning):
        seen = ()

        def observe(self, step):
            self.seen = (*self.seen, len(step.images))

    for size, expected in ((17, (8, 8)), (18, (8, 8, 2)), (3, (3,))):
        policy = Sizes()
        train(net(), splits_of(size), dataclasses.replace(RECIPE, epochs=1), policy=policy)
        assert policy.seen == expected


def test_every_epoch_shows_each_image_once_in_a_new_order(net, splits):
    class Order(NoPruning):
        def __init__(self):
            self.epochs = {}

        def observe(self, step):
            self.epochs.setdefault(step.epoch, []).extend(round(float(image[0, 3, 3])) for image in step.images)

    count = 20
    images = torch.zeros(count, 1, 4, 4)
    images[:, 0, 3, 3] = torch.arange(count)
    plain = dataclasses.replace(splits, train=TensorDataset(images, torch.arange(count) % 3))
    policy = Order()
    train(net(), plain, dataclasses.replace(RECIPE, epochs=3), policy=policy)
    orders = list(policy.epochs.values())
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_data_loading_workers_train_and_resume_alike(net, splits, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=2, workers=1)
    whole, resumed, state = net(), net(), tmp_path / "state.pt"
    train(whole, splits, recipe)
    with pytest.raises(KeyboardInterrupt):
        train(net(), splits, recipe, state_path=state, policy=Interrupt(step=4))
    train(resumed, splits, recipe, state_path=state, resume=True)
    assert same_weights(whole, resumed)


def test_half_precision_without_a_gpu_is_refused_and_another_precision_still_works(net, splits):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="fp16 is not available on cpu"):
            train(net(), splits, dataclasses.replace(recipe, mixed_precision="fp16"))
    exact, rounded = net(), net()
    train(exact, splits, recipe)
    train(rounded, splits, dataclasses.replace(recipe, mixed_precision="bf16"))
    assert not same_weights(exact, rounded)
    assert rounded.conv.weight.dtype == torch.float32


def test_gradients_are_clipped_together(net, splits):
    recipe = TrainingRecipe(
        epochs=1, batch_size=20, learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule="constant",
        warmup_epochs=0, gradient_clip=0.01,
    )  # fmt: skip
    before, model = net(), net()
    train(model, splits, recipe)
    moved = [a - b for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert math.sqrt(sum(float(change.detach().square().sum()) for change in moved)) == pytest.approx(0.01, rel=1e-3)


def test_bad_data_and_models_are_refused(net, splits, splits_of):
    with pytest.raises(DataError, match="blobs: the training split is empty"):
        train(net(), splits_of(0), RECIPE)
    wrong = dataclasses.replace(splits, train=TensorDataset(torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, 2, 7])))
    with pytest.raises(DataError, match="labels run from 0 to 7, but the model has 3 classes"):
        train(net(), wrong, RECIPE)
    headless = net()
    headless.classifier = nn.Identity()
    headless.forward = lambda images: [images]
    with pytest.raises(ModelError, match="returns list for 8 images"):
        train(headless, splits, RECIPE)
    assert "forward" in headless.__dict__


def test_progress_counts_every_step(net, splits):
    class Counting:
        def __init__(self):
            self.total, self.done, self.texts = None, 0, []

        def task(self, description, *, total=None):
            if description != "training":
                return SILENT.task(description, total=total)
            self.total = total
            return self

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

        def advance(self, steps=1):
            self.done += steps

        def describe(self, text):
            self.texts.append(text)

    progress = Counting()
    train(net(), splits, RECIPE, progress=progress)
    assert progress.done == progress.total == 12
    assert progress.texts[-1].startswith("epoch 4/4, loss ")


def test_a_model_may_be_copied_and_traced_after_training(net, splits):
    model = net()
    train(model, splits, dataclasses.replace(RECIPE, epochs=1, mixed_precision="bf16"))
    twin = copy.deepcopy(model.eval())
    images = torch.randn(2, 1, 4, 4)
    exported = torch.export.export(twin, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
