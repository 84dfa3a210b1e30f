"""A residual network and data so small that a whole pruning with all variants takes seconds."""

import copy
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prune2deploy.budget.surface import Surface
from prune2deploy.checkpoint.bundle import save_bundle
from prune2deploy.latency.table import MeasuredTable
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.pipeline.latency.whole_models import WholeModels, WholeTiming

BLOCKS = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, image):
        return (image + self.second(self.norm(self.first(image)).relu())).relu()


class Blocks(nn.Module):
    """A stem, two residual blocks on one stream, and a classifier."""

    def __init__(self, num_classes=3, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, image):
        return self.head(self.blocks(self.stem(image).relu()).mean((2, 3)))


class Chain(nn.Module):
    """No residual stream: everything lies inside."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, image):
        return self.head(self.second(self.first(image).relu()).relu().mean((2, 3)))


def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 1, 6, 6, generator=generator)
    images[:, 0, 0] += 2 * labels[:, None]
    return TensorDataset(images[:40], labels[:40]), TensorDataset(images[40:], labels[40:])
'''


@pytest.fixture
def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Makes a bundle of ``small_blocks:Blocks`` (or of another spec), trained for ``epochs`` as it says itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "small_blocks.py").write_text(BLOCKS)
    sys.modules.pop("small_blocks", None)
    importlib.invalidate_caches()

    def make(
        spec: str = "small_blocks:Blocks", *, epochs: int | None = 2, data: str | None = "small_blocks:data"
    ) -> Path:
        parsed = ModelSpec.parse(spec)
        path = tmp_path / "given"
        save_bundle(
            path,
            build_model(parsed, seed=3),
            spec=parsed,
            plan=None,
            input_shape=(1, 6, 6),
            class_count=3,
            data=data,
            provenance={} if epochs is None else {"epochs": epochs},
        )
        return path

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)


SHARED_OF_LATENCY = 0.1


@pytest.fixture
def engine_by_formula(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """An engine that times nothing: a tenth of the dense latency is shared, the rest goes with the FLOPs.

    The latency table says that time is a product of widths. Gives the number of networks that were timed so far.
    """
    timed = []

    def surfaces(widest: Any, setting: Any, **options: Any) -> MeasuredTable:
        found = {}
        for unit, widths in widest.items():
            axes = tuple(tuple(sorted({1, width})) for width in widths)
            found[unit] = Surface(axes=axes, values=functools.reduce(np.multiply.outer, axes, np.asarray(100.0)))
        return MeasuredTable(surfaces=found, timings={}, measured=7, reused=0, seconds=0.5, spread=0.01)

    def flops_of(model: torch.nn.Module, shape: tuple[int, ...]) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(model).eval()(torch.zeros(1, *shape))
        return counter.get_total_flops()

    def timing(self: WholeModels, model: torch.nn.Module) -> WholeTiming:
        timed.append(model)
        share = flops_of(model, self._input_shape) / flops_of(self._dense, self._input_shape)
        ratio = SHARED_OF_LATENCY + (1 - SHARED_OF_LATENCY) * share
        return WholeTiming(dense_ns=1e6, latency_ns=1e6 * ratio, ratio=ratio, low=0.99 * ratio, high=1.01 * ratio)

    monkeypatch.setattr("prune2deploy.pipeline.latency.search.measured_surfaces", surfaces)
    monkeypatch.setattr(WholeModels, "time", timing)
    return lambda: len(timed)
