import pytest
import torch
from torch import Tensor, nn

from prune2deploy.budget.plan import KeptIndices, PrunePlan, fingerprint_of
from prune2deploy.errors import InputError, ProofError
from prune2deploy.surgery.apply import apply_plan, pruned_copy, shapes_of


def plan_for(model: nn.Module, kept: dict[tuple[str, int], list[int]]) -> PrunePlan:
    shapes = shapes_of(model)
    return PrunePlan(
        fingerprint=fingerprint_of(shapes),
        entries=tuple(
            KeptIndices(tensor=name, dim=dim, dense_size=shapes[name][dim], kept=tuple(indices))
            for (name, dim), indices in kept.items()
        ),
    )


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def gate(model: nn.Module, layer: nn.Module, kept: list[int]) -> nn.Module:
    """Zero all other output channels of a layer."""

    def keep_only(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mask = torch.zeros(output.shape[1])
        mask[kept] = 1
        return output * mask.reshape(1, -1, *[1] * (output.dim() - 2))

    layer.register_forward_hook(keep_only)
    return model


def two_convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4, 1))


KEPT = [0, 3, 4, 7]
TWO_CONVOLUTIONS_CUT = {
    ("0.weight", 0): KEPT,
    ("0.bias", 0): KEPT,
    **{(f"1.{name}", 0): KEPT for name in ("weight", "bias", "running_mean", "running_var")},
    ("2.weight", 0): KEPT,
    ("3.weight", 1): KEPT,
}


def test_pruned_model_computes_what_the_gated_dense_model_computes() -> None:
    dense = randomised(two_convolutions())
    pruned = pruned_copy(dense, plan_for(dense, TWO_CONVOLUTIONS_CUT))
    inputs = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(pruned(inputs), gate(dense, dense[2], KEPT)(inputs))


def test_sizes_kept_as_attributes_agree_with_the_new_shapes() -> None:
    model = two_convolutions()
    apply_plan(model, plan_for(model, TWO_CONVOLUTIONS_CUT))
    assert (model[0].in_channels, model[0].out_channels) == (3, 4)
    assert model[1].num_features == 4
    assert model[2].num_parameters == 4
    assert (model[3].in_channels, model[3].out_channels) == (4, 5)


def test_what_the_plan_does_not_name_stays_the_same_object() -> None:
    model = two_convolutions()
    untouched = (model[4].weight, model[4].bias, model[3].bias, model[1].num_batches_tracked)
    model[1].num_batches_tracked += 3
    before = [tensor.detach().clone() for tensor in untouched]
    apply_plan(model, plan_for(model, TWO_CONVOLUTIONS_CUT))
    after = (model[4].weight, model[4].bias, model[3].bias, model[1].num_batches_tracked)
    assert all(a is b for a, b in zip(untouched, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_pruned_copy_leaves_the_dense_model_whole_and_shares_nothing_with_it() -> None:
    dense = two_convolutions()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    pruned = pruned_copy(dense, plan_for(dense, TWO_CONVOLUTIONS_CUT))
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert dense[0].out_channels == 8


def test_forward_and_backward_run_after_a_backward_on_the_dense_model() -> None:
    model = two_convolutions()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    apply_plan(model, plan_for(model, TWO_CONVOLUTIONS_CUT))
    assert model[0].weight.grad is None
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.shape == (4, 3, 3, 3)


def test_frozen_parameters_stay_frozen_and_keep_their_dtype_and_attributes() -> None:
    model = two_convolutions().to(torch.float64)
    model[0].weight.requires_grad_(False)
    model[0].weight.no_weight_decay = True
    apply_plan(model, plan_for(model, TWO_CONVOLUTIONS_CUT))
    assert model[0].weight.requires_grad is False
    assert model[0].weight.dtype == torch.float64
    assert model[0].weight.no_weight_decay is True
    assert model[0].bias.requires_grad is True


def test_channels_last_weights_stay_channels_last() -> None:
    model = two_convolutions().to(memory_format=torch.channels_last)
    values = model[3].weight.detach().clone()
    apply_plan(model, plan_for(model, TWO_CONVOLUTIONS_CUT))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    torch.testing.assert_close(model[3].weight, values[:, KEPT])


def test_transposed_storage_is_sliced_by_its_indices() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    model[0].weight = nn.Parameter(torch.randn(6, 4).T)
    values = model[0].weight.detach().clone()
    plan = plan_for(model, {("0.weight", 0): [1, 2], ("0.bias", 0): [1, 2], ("1.weight", 1): [1, 2]})
    apply_plan(model, plan)
    torch.testing.assert_close(model[0].weight, values[[1, 2]])
    assert (model[0].in_features, model[0].out_features, model[1].in_features) == (6, 2, 2)


def test_depthwise_convolution_with_a_multiplier_loses_whole_groups() -> None:
    dense = randomised(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 3, 1)))
    plan = plan_for(
        dense,
        {
            ("0.weight", 0): [0, 2],
            ("0.bias", 0): [0, 2],
            ("1.weight", 0): [0, 1, 4, 5],
            ("1.bias", 0): [0, 1, 4, 5],
            ("2.weight", 1): [0, 1, 4, 5],
        },
    )
    pruned = pruned_copy(dense, plan)
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (2, 2, 4)
    inputs = torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(pruned(inputs), gate(dense, dense[1], [0, 1, 4, 5])(inputs))


def test_grouped_convolution_loses_the_same_positions_of_every_group() -> None:
    dense = randomised(nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=2, bias=False)))
    plan = plan_for(
        dense,
        {
            ("0.weight", 0): [0, 2, 3, 5],
            ("0.bias", 0): [0, 2, 3, 5],
            ("1.weight", 0): [1, 2, 3, 4],
            ("1.weight", 1): [0, 2],
        },
    )
    pruned = pruned_copy(dense, plan)
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (2, 4, 4)
    inputs = torch.randn(2, 2, 5, 5)
    expected = gate(dense, dense[0], [0, 2, 3, 5])(inputs)[:, [1, 2, 3, 4]]
    torch.testing.assert_close(pruned(inputs), expected)


@pytest.mark.parametrize(
    ("module", "kept"),
    [(nn.Conv2d(6, 6, 1, groups=2, bias=False), [0, 1, 3]), (nn.GroupNorm(2, 6, affine=True), [0, 3, 4])],
)
def test_groups_of_unequal_size_are_refused_and_change_nothing(module: nn.Module, kept: list[int]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), module)
    cut = {("1.weight", 0): kept, ("0.weight", 0): [0, 1]}
    if isinstance(module, nn.GroupNorm):
        cut[("1.bias", 0)] = kept
    before = shapes_of(model)
    with pytest.raises(ProofError, match="equally many"):
        apply_plan(model, plan_for(model, cut | {("0.bias", 0): [0, 1]}))
    assert shapes_of(model) == before
    assert model[0].out_features == 6


def test_group_norm_loses_whole_groups() -> None:
    model = nn.Sequential(nn.GroupNorm(3, 6))
    apply_plan(model, plan_for(model, {("0.weight", 0): [2, 3, 4, 5], ("0.bias", 0): [2, 3, 4, 5]}))
    assert (model[0].num_groups, model[0].num_channels) == (2, 4)


def test_transposed_convolution_counts_its_groups_over_inputs() -> None:
    dense = randomised(
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.Conv2d(6, 2, 1))
    )
    pruned = pruned_copy(
        dense,
        plan_for(
            dense,
            {
                ("0.weight", 0): [2, 3],
                ("0.bias", 0): [2, 3],
                ("1.weight", 0): [2, 3],
                ("1.bias", 0): [3, 4, 5],
                ("2.weight", 1): [3, 4, 5],
            },
        ),
    )
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (1, 2, 3)
    inputs = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(pruned(inputs), gate(dense, dense[1], [3, 4, 5])(inputs))


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(tokens)))


@pytest.mark.parametrize("in_place", [True, False])
def test_tied_weights_are_sliced_once_and_stay_tied(in_place: bool) -> None:
    model = TiedLanguageModel()
    values = model.embedding.weight.detach().clone()
    kept = [0, 2, 5]
    plan = plan_for(model, {("embedding.weight", 1): kept, ("norm.weight", 0): kept, ("norm.bias", 0): kept})
    pruned = apply_plan(model, plan) if in_place else pruned_copy(model, plan)
    assert pruned.head.weight is pruned.embedding.weight
    torch.testing.assert_close(pruned.head.weight, values[:, kept])
    assert (pruned.head.in_features, pruned.embedding.embedding_dim, pruned.norm.normalized_shape) == (3, 3, (3,))
    assert pruned(torch.tensor([[1, 2]])).shape == (1, 2, 10)


def test_subclasses_and_hooks_survive() -> None:
    class OwnConvolution(nn.Conv2d):
        pass

    model = nn.Sequential(OwnConvolution(1, 4, 1), nn.Conv2d(4, 1, 1))
    seen: list[tuple[int, ...]] = []
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    apply_plan(model, plan_for(model, {("0.weight", 0): [1], ("0.bias", 0): [1], ("1.weight", 1): [1]}))
    model(torch.zeros(1, 1, 2, 2))
    assert type(model[0]) is OwnConvolution
    assert model[0].out_channels == 1
    assert seen == [(1, 1, 2, 2)]


def test_a_module_used_at_two_places_is_cut_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert "2.weight" in shapes_of(model)
    kept = [0, 3]
    apply_plan(model, plan_for(model, {("0.weight", 0): kept, ("0.weight", 1): kept, ("0.bias", 0): kept}))
    assert model[2].weight.shape == (2, 2)
    assert model(torch.zeros(1, 2)).shape == (1, 2)


def test_a_plan_of_another_model_is_refused() -> None:
    plan = plan_for(two_convolutions(), TWO_CONVOLUTIONS_CUT)
    with pytest.raises(InputError, match="belongs to another model"):
        apply_plan(nn.Sequential(nn.Conv2d(3, 8, 3)), plan)


def test_a_plan_that_names_an_absent_tensor_is_refused() -> None:
    model = two_convolutions()
    entry = KeptIndices(tensor="9.weight", dim=0, dense_size=8, kept=(0,))
    with pytest.raises(InputError, match="does not have"):
        apply_plan(model, PrunePlan(fingerprint=fingerprint_of(shapes_of(model)), entries=(entry,)))


def test_a_bias_that_does_not_fit_its_weight_is_refused() -> None:
    model = two_convolutions()
    with pytest.raises(ProofError, match="bias would have shape"):
        apply_plan(model, plan_for(model, {("0.weight", 0): KEPT}))


def test_an_empty_plan_changes_nothing() -> None:
    model = two_convolutions()
    parameters = list(model.parameters())
    apply_plan(model, plan_for(model, {("0.weight", 0): list(range(8))}))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
