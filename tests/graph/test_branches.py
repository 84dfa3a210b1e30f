"""Which residual branches can leave whole, and what that costs less."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prune2deploy.graph.becomes import Becomes
from prune2deploy.graph.channels import Branch, ChannelGraph
from prune2deploy.graph.marginal import marginal_flops
from prune2deploy.graph.restrict import restricted_graph
from prune2deploy.graph.trace import trace
from prune2deploy.model.zoo.densenet import densenet_bc_100_12
from prune2deploy.model.zoo.resnet import resnet20
from prune2deploy.model.zoo.vgg import vgg16_bn
from prune2deploy.model.zoo.wide_resnet import wrn40_2


def branches_of(model: nn.Module, *shape: int) -> tuple[ChannelGraph, dict[str, Branch]]:
    graph = trace(model, torch.randn(*(shape or (1, 3, 16, 16)))).graph
    return graph, {branch.name: branch for branch in graph.branches}


def group_names(graph: ChannelGraph, branch: Branch) -> list[str]:
    return [graph.groups[index].name for index in branch.groups]


class Block(nn.Module):
    """A residual block whose forward is given."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, 6, 3, padding=1), nn.Conv2d(6, width, 3, padding=1)
        self.same, self.norm = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.rewritten = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.rewritten(self, x)


def network(*forwards: Callable[[nn.Module, Tensor], Tensor]) -> nn.Sequential:
    blocks = [Block(forward) for forward in forwards]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def plain(block: nn.Module, x: Tensor) -> Tensor:
    return x + block.second(block.first(x).relu())


def test_blocks_with_an_identity_shortcut_can_leave() -> None:
    graph, branches = branches_of(resnet20())
    identity = [
        f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2) if (stage, block) >= (stage, stage > 1)
    ]
    assert list(branches) == [f"{name}.bn2" for name in identity]
    branch = branches["layer2.1.bn2"]
    assert dict(branch.modules) == {
        "layer2.1.conv1": Becomes.ZEROS,
        "layer2.1.bn1": Becomes.INPUT,
        "layer2.1.relu1": Becomes.INPUT,
        "layer2.1.conv2": Becomes.INPUT,
        "layer2.1.bn2": Becomes.INPUT,
    }
    assert group_names(graph, branch) == ["layer2.1.conv1"]
    assert {name.rpartition(".")[0] for name in branch.tensors} == {
        f"layer2.1.{name}" for name in ("conv1", "bn1", "conv2", "bn2")
    }


def test_the_norm_before_a_branch_goes_with_it() -> None:
    _, branches = branches_of(wrn40_2())
    assert len(branches) == 15
    assert next(iter(branches["block2.layer.1.conv2"].modules.items())) == ("block2.layer.1.bn1", Becomes.ZEROS)


@pytest.mark.parametrize("make", [vgg16_bn, densenet_bc_100_12], ids=["vgg", "densenet"])
def test_networks_without_additions_have_none(make: Callable[[], nn.Module]) -> None:
    assert branches_of(make(), 1, 3, 32, 32)[1] == {}


@pytest.mark.parametrize(
    ("name", "count", "groups"),
    [("resnet18", 5, ["layer3.1.conv1"]), ("resnet50", 12, ["layer3.1.conv1", "layer3.1.conv2"])],
)
def test_shared_activations_stay_where_they_are(name: str, count: int, groups: list[str]) -> None:
    torchvision = pytest.importorskip("torchvision")
    graph, branches = branches_of(torchvision.models.get_model(name), 1, 3, 32, 32)
    assert len(branches) == count
    last = {"resnet18": "bn2", "resnet50": "bn3"}[name]
    assert "layer3.1.relu" not in branches[f"layer3.1.{last}"].modules
    assert group_names(graph, branches[f"layer3.1.{last}"]) == groups


def test_squeeze_and_excite_leaves_with_its_branch() -> None:
    timm = pytest.importorskip("timm")
    graph, branches = branches_of(timm.create_model("seresnet18"), 1, 3, 32, 32)
    assert group_names(graph, branches["layer2.1.se"]) == ["layer2.1.conv1", "layer2.1.se.fc1"]


def test_attention_and_mlp_are_two_branches_of_a_transformer_block() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1)
    _, branches = branches_of(model)
    assert [dict(branch.modules) for branch in branches.values()] == [
        {"blocks.0.norm1": Becomes.ZEROS, "blocks.0.attn": Becomes.INPUT},
        {"blocks.0.norm2": Becomes.ZEROS, "blocks.0.mlp": Becomes.INPUT},
    ]


def test_nested_branches_are_each_their_own() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
            self.inner = Block(plain)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(self.up(self.down(x)))

    stem, head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    graph, branches = branches_of(nn.Sequential(stem, Nested(), head, nn.Flatten()))
    assert {name: group_names(graph, branch) for name, branch in branches.items()} == {
        "1.inner.second": ["1.inner.first"],
        "1.inner": ["1.down", "1.inner.first"],
    }


class Scaled(nn.Module):
    """A block in channels-last order that holds a scale of its own, as ConvNeXt has it."""

    def __init__(self, *, along_last: bool) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.along_last = along_last

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.second(functional.gelu(self.first(y)))
        if self.along_last:
            return x + (y * self.scale).permute(0, 3, 1, 2)
        return x + y.permute(0, 3, 1, 2) * self.scale.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("along_last", [False, True])
def test_a_scale_that_the_block_holds_stays_and_follows_the_stream(along_last: bool) -> None:
    stem, head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    graph, branches = branches_of(nn.Sequential(stem, Scaled(along_last=along_last), head, nn.Flatten()))
    [branch] = branches.values()
    assert list(branch.modules) == ["1.mix", "1.norm", "1.first", "1.second"]
    assert group_names(graph, branch) == ["1.first"]
    assert "1.scale" not in branch.tensors
    kept = graph.everything()
    kept[graph.groups[branch.groups[0]].channels] = False
    assert "1.scale" in restricted_graph(graph, kept).shapes


def test_of_two_branches_without_a_shortcut_neither_leaves_alone() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ways = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + (self.ways[0](x) + self.ways[1](x))

    stem, head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    graph, branches = branches_of(nn.Sequential(stem, Parallel(), head, nn.Flatten()))
    [both] = branches.values()
    assert dict(both.modules) == {"1.ways.0": Becomes.ZEROS, "1.ways.1": Becomes.ZEROS}
    assert group_names(graph, both) == ["1.ways.0.0", "1.ways.1.0"]


def gated(block: nn.Module, x: Tensor) -> Tensor:
    """What is before the branch is written to, which the shortcut sees."""
    return x + block.second(block.first(functional.relu(x, inplace=True)))


def test_a_branch_begins_after_what_writes_to_the_shortcut() -> None:
    _, branches = branches_of(network(gated))
    assert dict(branches["1.second"].modules) == {"1.first": Becomes.ZEROS, "1.second": Becomes.INPUT}


def test_where_code_makes_something_of_zero_every_module_gives_zeros() -> None:
    _, branches = branches_of(network(lambda block, x: x + block.second(block.first(x).sigmoid())))
    assert set(branches["1.second"].modules.values()) == {Becomes.ZEROS}


STAYING = {
    "read_twice": lambda block, x: (lambda f: x + f + f.mean(1, keepdim=True))(block.second(block.first(x))),
    "no_shortcut": lambda block, x: block.second(block.first(x)) + block.second(block.first(x).relu()),
    "projection": lambda block, x: block.norm(block.same(x)) + 1,
    "two_branches": lambda block, x: block.same(x) + block.second(block.first(x)),
    "nothing_of_its_own": lambda block, x: x + block.same(x),
    "sizes_between": lambda block, x: x + block.second(block.first(x).view(-1, 6, 16, 16)),
    "not_zero_after_the_last": lambda block, x: x + block.second(block.first(x)).sigmoid(),
    "of_a_constant": lambda block, x: block.second(block.first(x)) + torch.ones(8, 1, 1),
    "weights_used_elsewhere": lambda block, x: x + block.second(block.first(x)) * block.first.weight.mean(),
    "norm_with_stream_of_another_width": lambda block, x: (lambda y: y + block.second(block.first(x)))(block.same(x)),
}


@pytest.mark.parametrize("forward", STAYING.values(), ids=STAYING)
def test_branches_stay_that_zeros_cannot_stand_for(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert branches_of(network(forward))[1] == {}


def test_tied_weights_keep_a_branch() -> None:
    model = network(plain, plain)
    model[2].first.weight = model[1].first.weight
    assert branches_of(model)[1] == {}


def test_a_branch_costs_nothing_once_all_its_groups_are_empty() -> None:
    torchvision = pytest.importorskip("torchvision")
    graph, branches = branches_of(torchvision.models.resnet50(num_classes=4), 1, 3, 32, 32)
    branch = branches["layer2.1.bn3"]
    kept = graph.everything()
    for index in branch.groups:
        kept[graph.groups[index].channels] = False
    sizes = {name: torch.Size(shape).numel() for name, shape in graph.shapes.items()}
    learnable = [name for name in branch.tensors if name.endswith((".weight", ".bias"))]
    assert graph.removed_branches(kept) == (branch,)
    assert graph.cost.dense_parameters - graph.cost.parameters(kept) == sum(sizes[name] for name in learnable)
    layers = graph.cost.flops_by_layer(kept)
    assert all(layers[f"layer2.1.conv{number}"] == 0 for number in (1, 2, 3))


def test_the_graph_without_a_branch_forgets_its_tensors_and_keeps_its_numbers() -> None:
    graph, branches = branches_of(network(plain, plain))
    kept = graph.everything()
    [index] = branches["1.second"].groups
    kept[graph.groups[index].channels] = False
    kept[graph.groups[branches["2.second"].groups[0]].channels[:2]] = False
    left = restricted_graph(graph, kept)
    assert not [name for name in left.shapes if name.startswith(("1.first", "1.second"))]
    assert [branch.name for branch in left.branches] == ["2.second"]
    assert [len(group.channels) for group in left.groups] == [
        0 if group.index == index else int(kept[group.channels].sum()) for group in graph.groups
    ]
    everything = left.everything()
    assert left.cost.flops(everything) == graph.cost.flops(kept)
    assert left.cost.parameters(everything) == graph.cost.parameters(kept)


def test_a_branch_of_which_a_group_is_held_stays() -> None:
    graph, branches = branches_of(network(plain, plain))
    [index] = branches["1.second"].groups
    held = graph.without_groups({index: "protected"})
    assert [branch.name for branch in held.branches] == ["2.second"]
    assert group_names(held, held.branches[0]) == ["2.first"]
    assert graph.without_branches({"1.second"}).branches == (branches["2.second"],)


def test_a_channel_of_the_stream_costs_nothing_in_a_branch_that_left() -> None:
    stem, head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    graph, branches = branches_of(nn.Sequential(stem, Scaled(along_last=True), head, nn.Flatten()))
    [branch] = branches.values()
    kept = graph.everything()
    kept[graph.groups[branch.groups[0]].channels] = False
    [stream] = [group for group in graph.groups if group.index not in branch.groups]
    fewer = kept.copy()
    fewer[stream.channels[0]] = False
    lost = graph.cost.flops(kept) - graph.cost.flops(fewer)
    assert marginal_flops(graph.cost, kept)[stream.channels[0]] == lost
    assert lost == 2 * 16 * 16 * (3 + 4)
