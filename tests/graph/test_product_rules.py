import pytest
import torch
from torch import Tensor, nn


def test_linear_layers_over_many_dimensions_are_cut_exactly(see, prove_random_cut) -> None:
    seen = see(nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 7), nn.Linear(7, 3)), (1, 4, 5))
    assert seen.widths == {"0": 12, "2": 7}
    assert seen.graph.cost.dense_flops == 2 * 4 * (5 * 12 + 12 * 7 + 7 * 3)
    prove_random_cut(seen)


class MatrixProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 12))
        self.second = nn.Parameter(torch.randn(12, 7))
        self.bias = nn.Parameter(torch.randn(7))
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.addmm(self.bias, (x @ self.first).relu(), self.second))


def test_matrix_products_with_parameters_are_layers(see, prove_random_cut) -> None:
    seen = see(MatrixProducts(), (1, 5))
    assert seen.widths == {"first": 12, "second": 7}
    assert seen.channels("second", 0) == seen.channels("first", 1)
    assert seen.channels("bias", 0) == seen.channels("second", 1) == seen.channels("out.weight", 1)
    prove_random_cut(seen)


class Gram(nn.Module):
    """A product of two activations over their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.query(x) @ self.key(x).transpose(1, 2))


def test_a_product_of_activations_couples_what_it_sums_over(see, prove_random_cut) -> None:
    seen = see(Gram(), (1, 4, 5))
    assert seen.widths == {"query": 8}
    assert seen.channels("key.weight", 0) == seen.channels("query.weight", 0)
    prove_random_cut(seen)


class Einsum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation
        self.first = nn.Linear(5, 8)
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.einsum(self.equation, self.first(x), self.weight))


@pytest.mark.parametrize("equation", ["bnc,cd->bnd", "...c,cd->...d", "a b c, c d"])
def test_an_einsum_produces_its_free_letters_and_reads_those_it_sums_over(see, prove_random_cut, equation) -> None:
    seen = see(Einsum(equation), (1, 4, 5))
    assert seen.widths == {"first": 8, "weight": 6}
    assert seen.channels("out.weight", 1) == seen.channels("weight", 1)
    assert seen.channels("weight", 0) == seen.channels("first.weight", 0)
    prove_random_cut(seen)


class Diagonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.einsum("bnn->bn", self.first(x)))


def test_an_einsum_over_a_diagonal_is_not_followed_and_says_so(see) -> None:
    seen = see(Diagonal(), (1, 4, 5))
    assert seen.widths == {}
    assert "an einsum over a diagonal is not followed" in seen.frozen("first.weight")


class Attention(nn.Module):
    def __init__(self, *, heads: int = 4, width: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(5, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 48), nn.Linear(48, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return self.out((x + self.down(self.up(x).relu())).mean(1))


def test_attention_heads_are_the_channels_of_its_projections(see) -> None:
    seen = see(Attention(), (1, 6, 5))
    heads = seen.channels("qkv.weight", 0)
    assert heads[:32] == heads[32:64] == heads[64:] == seen.channels("proj.weight", 1)
    assert heads[:32] == [channel for channel in sorted(set(heads)) for _ in range(8)]
    assert seen.widths == {"embed": 32, "qkv": 4, "up": 48}
