"""A residual network and data so small that a whole pruning with all variants takes seconds."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from prune2deploy.checkpoint.bundle import save_bundle
from prune2deploy.model.spec import ModelSpec, build_model

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
