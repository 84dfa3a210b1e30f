"""Residual branches that leave whole: the module, the optimiser, the proof, the bundle and the training after it."""

import copy
import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.budget.from_mask import mask_from_plan, plan_from_mask
from prune2deploy.budget.plan import Becomes, PrunePlan, RemovedBranch, fingerprint_of
from prune2deploy.checkpoint.bundle import load_bundle, save_bundle
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import InputError, ProofError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.restrict import restricted_graph
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.policies.policy import Decision, Moment, NoPruning, When
from prune2deploy.policies.standing import Standing
from prune2deploy.surgery.apply import apply_plan, pruned_copy, shapes_of
from prune2deploy.surgery.edit import rebuilt_copy
from prune2deploy.surgery.optimizer import slice_optimizer_state
from prune2deploy.surgery.sliced import sliced
from prune2deploy.surgery.trial import freeze_what_breaks, randomised_copy
from prune2deploy.surgery.verify import count_flops, count_parameters, prove
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

ALL = "all"


class Block(nn.Module):
    """Two convolutions, the activation between them in place, beside an identity shortcut."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = nn.Conv2d(inside, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Net(nn.Module):
    """A stem, ``count`` blocks, a classifier. Shape: (N, 1, H, W) -> (N, 3)."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8, 6 + number) for number in range(count)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


def traced(seed: int = 0) -> tuple[Net, Trace, tuple[Tensor]]:
    torch.manual_seed(seed)
    inputs = (torch.randn(1, 1, 8, 8),)
    model = Net()
    return randomised_copy(model, inputs=inputs), trace(model, inputs), inputs


def without(graph: ChannelGraph, names: Collection[str] | str, *, narrower: Collection[str] = ()) -> ChannelMask:
    """Keep all but these branches, and the first two channels of some groups."""
    kept = graph.everything()
    for branch in graph.branches:
        if names == ALL or branch.name in names:
            for index in branch.groups:
                kept[graph.groups[index].channels] = False
    for group in graph.groups:
        if group.name in narrower:
            kept[group.channels[:2]] = False
    return kept


def test_a_model_without_branches_is_the_dense_one_that_adds_zeros() -> None:
    dense, seen, inputs = traced()
    kept = without(seen.graph, ["blocks.0.bn2", "blocks.2.bn2"], narrower=["stem", "blocks.1.conv1"])
    pruned = pruned_copy(dense, plan_from_mask(seen.graph, kept))
    proof = prove(seen, dense, pruned, kept, inputs)
    assert (count_flops(pruned, inputs), count_parameters(pruned)) == (proof.flops, proof.parameters)
    assert proof.relative_error < 1e-5

    def add_nothing(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * 0

    whole = without(seen.graph, ["blocks.0.bn2", "blocks.2.bn2"])
    pruned = pruned_copy(dense, plan_from_mask(seen.graph, whole))
    for number in (0, 2):
        dense.blocks[number].bn2.register_forward_hook(add_nothing)
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(pruned(images), dense(images))


def test_shifts_of_the_last_norm_leave_too_so_that_zero_is_added() -> None:
    dense, seen, _ = traced()
    pruned = pruned_copy(dense, plan_from_mask(seen.graph, without(seen.graph, ALL)))
    x = torch.randn(2, 8, 4, 4)
    before = x.clone()
    for module in pruned.blocks:
        assert torch.equal(module(x), before.relu())
    assert torch.equal(x, before)  # the activation in place worked on the zeros
    assert {name.partition(".")[0] for name in pruned.state_dict()} == {"stem", "head"}


def test_values_that_are_not_finite_stay_in_the_shortcut() -> None:
    dense, seen, _ = traced()
    pruned = pruned_copy(dense, plan_from_mask(seen.graph, without(seen.graph, ALL)))
    x = torch.tensor([float("inf"), 1.0]).view(2, 1, 1, 1).expand(2, 8, 2, 2).clone()
    assert torch.equal(pruned.blocks[0](x), x)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_gradients_pass_by_the_shortcut_alone(training: bool) -> None:
    dense, seen, _ = traced()
    pruned = pruned_copy(dense, plan_from_mask(seen.graph, without(seen.graph, ALL, narrower=["stem"])))
    pruned.train(training)
    x = torch.rand(4, 6, 3, 3, requires_grad=True)
    pruned.blocks(x * 1).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_copy_leaves_the_dense_model_alone_and_shares_nothing_with_it() -> None:
    dense, seen, inputs = traced()
    before, output = shapes_of(dense), dense(*inputs)
    plan = plan_from_mask(seen.graph, without(seen.graph, ["blocks.1.bn2"]))
    pruned = pruned_copy(dense, plan)
    assert shapes_of(dense) == before
    assert torch.equal(dense(*inputs), output)
    assert not {id(tensor) for tensor in pruned.parameters()} & {id(tensor) for tensor in dense.parameters()}
    assert (
        fingerprint_of(shapes_of(pruned)) == restricted_graph(seen.graph, mask_from_plan(seen.graph, plan)).fingerprint
    )


def test_cutting_in_place_gives_what_the_copy_is() -> None:
    dense, seen, inputs = traced()
    plan = plan_from_mask(seen.graph, without(seen.graph, ["blocks.1.bn2"], narrower=["stem"]))
    copied = pruned_copy(dense, plan)
    stays = dense.head.bias
    dense.blocks[1].train()
    assert apply_plan(dense, plan) is dense
    assert dense.head.bias is stays
    assert dense.blocks[1].conv1.training
    assert not dense.blocks[0].conv1.training
    dense.eval()
    assert torch.equal(dense(*inputs), copied(*inputs))


def test_a_model_cut_for_a_while_has_its_branch_back_afterwards() -> None:
    dense, seen, inputs = traced()
    output, state = dense(*inputs), dense.state_dict()
    with sliced(dense, plan_from_mask(seen.graph, without(seen.graph, ALL))) as cut:
        assert count_parameters(cut) < 120
    assert torch.equal(dense(*inputs), output)
    assert dense.state_dict().keys() == state.keys()


def test_a_plan_of_another_model_leaves_it_as_it_was() -> None:
    dense, _, _ = traced()
    names = list(dense.state_dict())
    gone = RemovedBranch(name="x", modules={"blocks.7.conv1": Becomes.ZEROS})
    plan = PrunePlan(fingerprint=fingerprint_of(shapes_of(dense)), entries=(), removed=(gone,))
    with pytest.raises(InputError, match="does not have"):
        apply_plan(dense, plan)
    assert list(dense.state_dict()) == names


class TwoInside(nn.Module):
    """A branch with two groups of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.middle(self.first(x)))


def two_inside() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 1), TwoInside(), nn.Flatten(), nn.Linear(8 * 16, 3)).eval()


def test_the_proof_refuses_a_branch_that_still_adds_something() -> None:
    dense, inputs = two_inside(), (torch.randn(1, 1, 4, 4),)
    seen = trace(dense, inputs)
    kept = without(seen.graph, ALL)
    plan = plan_from_mask(seen.graph, kept)
    [gone] = plan.removed
    wrong = dataclasses.replace(gone, modules=dict.fromkeys(gone.modules, Becomes.INPUT))
    pruned = pruned_copy(dense, dataclasses.replace(plan, removed=(wrong,)))
    with pytest.raises(ProofError, match=r"not the dense one .* every group is exact by itself"):
        prove(seen, dense, pruned, kept, inputs)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("resnet20", (1, 3, 16, 16)),
        ("wrn40_2", (1, 3, 16, 16)),
        ("torchvision:resnet18", (1, 3, 32, 32)),
        ("torchvision:resnet50", (1, 3, 32, 32)),
        ("timm:seresnet18", (1, 3, 32, 32)),
        ("timm:vit_tiny_patch16_224?img_size=16&patch_size=8&depth=2", (1, 3, 16, 16)),
    ],
)
def test_networks_that_are_in_use_are_proved_without_branches(spec: str, shape: tuple[int, ...]) -> None:
    if ":" in spec:
        pytest.importorskip(spec.partition(":")[0])
    model = build_model(ModelSpec.parse(spec), seed=0)
    inputs = (torch.randn(*shape),)
    seen = freeze_what_breaks(trace(model, inputs), model, inputs)
    sample = randomised_copy(model, inputs=inputs)
    graph = seen.graph
    assert graph.branches
    kept = without(graph, [branch.name for branch in graph.branches[::2]])
    for group in graph.groups[::3]:
        kept[group.channels[: len(group.channels) // 3]] = False
    plan = plan_from_mask(graph, kept)
    assert len(plan.removed) == len(graph.branches[::2])
    pruned = pruned_copy(sample, plan)
    proof = prove(seen, sample, pruned, kept, inputs)
    assert (count_flops(pruned, inputs), count_parameters(pruned)) == (proof.flops, proof.parameters)
    assert (mask_from_plan(graph, PrunePlan.from_document(json.loads(json.dumps(plan.to_document())))) == kept).all()


class Tuple(nn.Module):
    """A module whose two results the code tells apart, which its replacement does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.second(self.first(x).relu()), None


class TakesOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = Tuple()

    def forward(self, x: Tensor) -> Tensor:
        added, _ = self.both(x)
        return x + added


def test_a_branch_that_the_code_cannot_do_without_is_found_on_trial() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 1), Block(8, 6), TakesOne(), nn.Flatten(), nn.Linear(8 * 16, 3))
    inputs = (torch.randn(1, 1, 4, 4),)
    seen = trace(model, inputs)
    assert [branch.name for branch in seen.graph.branches] == ["1.bn2", "2.both"]
    tried = freeze_what_breaks(seen, model, inputs)
    assert [branch.name for branch in tried.graph.branches] == ["1.bn2"]
    assert len(tried.graph.groups) == len(seen.graph.groups)
    with pytest.raises(InputError, match="all channels"):
        plan_from_mask(tried.graph, without(seen.graph, ["2.both"]))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9), "momentum_buffer"),
        (lambda parameters: torch.optim.AdamW(parameters, lr=0.01), "exp_avg"),
    ],
    ids=["sgd", "adamw"],
)
def test_parameters_of_a_branch_leave_the_optimiser_with_their_state(
    make: Callable[..., torch.optim.Optimizer], key: str
) -> None:
    model, seen, _ = traced()
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = make([{"params": decayed}, {"params": others}])
    step(model, optimizer)
    dense = dict(model.named_parameters(remove_duplicate=False))
    before = copy.deepcopy(optimizer.state[model.blocks[1].conv1.weight][key])
    plan = plan_from_mask(seen.graph, without(seen.graph, ["blocks.0.bn2"], narrower=["stem"]))
    apply_plan(model, plan)
    slice_optimizer_state(optimizer, model, plan, dense_parameters=dense)
    left = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(one) for one in left} == {id(one) for one in model.parameters()} == {id(one) for one in optimizer.state}
    assert torch.equal(optimizer.state[model.blocks[1].conv1.weight][key], before[:, 2:])
    step(model, optimizer)


def test_masks_that_empty_what_cannot_leave_are_refused() -> None:
    graph = trace(two_inside(), torch.randn(1, 1, 4, 4)).graph
    groups = {group.name: group.channels for group in graph.groups}
    for name in ("0", "1.middle"):
        kept = graph.everything()
        kept[groups[name]] = False
        with pytest.raises(InputError, match="all channels of a group would leave") as refusal:
            plan_from_mask(graph, kept)
        assert refusal.value.where == name
        assert ("1.first, 1.middle" in str(refusal.value.hint)) == (name == "1.middle")


def test_plans_with_removed_branches_compose_and_survive_json() -> None:
    dense, seen, inputs = traced()
    standing = Standing(seen.graph)
    first_mask = without(seen.graph, ["blocks.0.bn2"], narrower=["blocks.1.conv1", "stem"])
    second_mask = without(seen.graph, ["blocks.0.bn2", "blocks.1.bn2"], narrower=["stem", "blocks.2.conv1"])
    first = standing.cut_to(first_mask, {"step": 1})
    second = standing.cut_to(second_mask & first_mask, {"step": 2})
    assert [branch.name for branch in second.removed] == ["blocks.1.bn2"]
    both = first.then(second)
    assert (mask_from_plan(seen.graph, both) == (first_mask & second_mask)).all()
    twice = pruned_copy(pruned_copy(dense, first), second)
    assert torch.equal(twice(*inputs), pruned_copy(dense, both)(*inputs))
    read = PrunePlan.from_document(json.loads(json.dumps(both.to_document())))
    assert read == both
    assert not read.is_empty
    costs = [standing.dense.cost.flops(standing.kept), standing.graph.cost.flops(standing.graph.everything())]
    assert costs == [count_flops(twice, inputs)] * 2
    assert standing.dense.cost.parameters(standing.kept) == count_parameters(twice)


def test_a_model_without_branches_is_traced_as_its_restricted_graph_says() -> None:
    dense, seen, inputs = traced()
    kept = without(seen.graph, ["blocks.0.bn2"], narrower=["blocks.1.conv1"])
    again = trace(pruned_copy(dense, plan_from_mask(seen.graph, kept)), inputs).graph
    left = restricted_graph(seen.graph, kept)
    widths = {group.name: len(group.channels) for group in left.groups if len(group.channels)}
    assert {group.name: len(group.channels) for group in again.groups} == widths
    assert [branch.name for branch in again.branches] == [branch.name for branch in left.branches]
    assert (again.fingerprint, again.cost.dense_flops) == (left.fingerprint, left.cost.dense_flops)


def test_a_branch_within_one_that_leaves_later_is_told_of_once() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inner, self.after = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), Block(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.after(self.inner(self.before(x)))

    model = nn.Sequential(nn.Conv2d(1, 8, 1), Outer(), nn.Flatten(), nn.Linear(8 * 16, 3)).eval()
    inputs = (torch.randn(1, 1, 4, 4),)
    graph = trace(model, inputs).graph
    assert [branch.name for branch in graph.branches] == ["1.after.bn2", "1.after"]
    standing = Standing(graph)
    first = standing.cut_to(without(graph, ["1.after.bn2"]), {})
    second = standing.cut_to(without(graph, ALL), {})
    both = first.then(second)
    assert [branch.name for branch in both.removed] == ["1.after"]
    assert both == plan_from_mask(graph, without(graph, ALL))
    assert torch.equal(pruned_copy(pruned_copy(model, first), second)(*inputs), pruned_copy(model, both)(*inputs))


def test_plans_without_branches_are_written_as_before_and_damaged_ones_are_refused() -> None:
    _, seen, _ = traced()
    narrower = plan_from_mask(seen.graph, without(seen.graph, [], narrower=["stem"])).to_document()
    assert narrower["schema_version"] == 1
    assert "removed" not in narrower
    removed = plan_from_mask(seen.graph, without(seen.graph, ALL)).to_document()
    assert removed["schema_version"] == 2
    removed["removed"][0]["modules"]["blocks.0.conv1"] = "ones"
    with pytest.raises(InputError, match="damaged"):
        PrunePlan.from_document(removed)
    removed["removed"][0]["modules"] = []
    with pytest.raises(InputError, match="damaged"):
        PrunePlan.from_document(removed)


def test_a_plan_that_removes_no_branch_of_the_model_has_no_mask() -> None:
    _, seen, _ = traced()
    plan = plan_from_mask(seen.graph, without(seen.graph, ["blocks.0.bn2"]))
    [gone] = plan.removed
    torn = dataclasses.replace(gone, modules={"blocks.0.conv1": Becomes.ZEROS})
    with pytest.raises(InputError, match="no residual branch"):
        mask_from_plan(seen.graph, dataclasses.replace(plan, removed=(torn,)))


def test_an_edited_graph_has_no_modules_to_replace() -> None:
    dense, seen, inputs = traced()
    assert not trace(dense, inputs, sizes_are_free=True).graph.branches
    with pytest.raises(InputError, match="residual branch"):
        rebuilt_copy(dense, plan_from_mask(seen.graph, without(seen.graph, ALL)), inputs)


def test_a_bundle_without_branches_comes_back_bit_by_bit(tmp_path: Path) -> None:
    spec = ModelSpec.parse("zoo:resnet20?num_classes=4")
    dense = build_model(spec, seed=3)
    graph = trace(dense, torch.randn(1, 3, 16, 16)).graph
    plan = plan_from_mask(graph, without(graph, ["layer1.1.bn2", "layer3.2.bn2"], narrower=["layer2.1.conv1"]))
    model = pruned_copy(dense, plan).eval()
    save_bundle(tmp_path / "pruned", model, spec=spec, plan=plan, input_shape=(3, 16, 16))
    loaded = load_bundle(tmp_path / "pruned")
    assert loaded.manifest.plan == plan
    assert shapes_of(loaded.model) == shapes_of(model)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.model(images), model(images))


class Removing(NoPruning):
    """Removes one branch after each of the first two epochs, and some channels beside it."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.standing = Standing(graph)

    def decide(self, moment: Moment) -> Decision | None:
        names = {1: ["blocks.1.bn2"], 2: ["blocks.1.bn2", "blocks.0.bn2"]}.get(moment.epoch)
        if moment.when is not When.AFTER_EPOCH or names is None:
            return None
        graph = self.standing.dense
        return Decision(plan=self.standing.cut_to(without(graph, names, narrower=["stem"]), {"epoch": moment.epoch}))

    def state_dict(self) -> dict[str, object]:
        return self.standing.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.standing.load_state_dict(state)


def splits() -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 3
    data = torch.utils.data.TensorDataset(images, labels)
    return DataSplits(
        name="noise",
        train=data,
        evaluation=data,
        calibration=data,
        class_names=("a", "b", "c"),
        input_shape=(1, 8, 8),
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_goes_on_after_branches_left_and_resumes_to_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    _, seen, _ = traced()
    recipe = TrainingRecipe(epochs=3, batch_size=8, learning_rate=0.01, seed=3, optimizer=optimizer)

    def fresh() -> Net:
        torch.manual_seed(1)
        return Net()

    class Stopped(Removing):
        def decide(self, moment: Moment) -> Decision | None:
            if moment.when is When.AFTER_STEP and moment.step == 5:
                raise KeyboardInterrupt
            return super().decide(moment)

    whole, resumed = fresh(), fresh()
    result = train(whole, splits(), recipe, policy=Removing(seen.graph))
    assert [branch.name for branch in result.plan.removed] == ["blocks.1.bn2", "blocks.0.bn2"]
    assert {name.rpartition(".")[0] for name in whole.state_dict()} == {"stem", "head"} | {
        f"blocks.2.{name}" for name in ("conv1", "bn1", "conv2", "bn2")
    }
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), splits(), recipe, state_path=tmp_path / "state.pt", policy=Stopped(seen.graph))
    train(resumed, splits(), recipe, state_path=tmp_path / "state.pt", resume=True, policy=Removing(seen.graph))
    assert shapes_of(resumed) == shapes_of(whole)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
