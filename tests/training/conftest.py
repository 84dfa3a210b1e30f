"""A data set small enough to train on in a blink, with everything that an exact resume has to repeat."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prune2deploy.data.splits import DataSplits


class Jittered(Dataset):
    """Augments with torch's global generator, as the real data sets do."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index] + 0.1 * torch.randn_like(self.images[index]), int(self.labels[index])


class Net(nn.Module):
    """Convolution, batch norm, dropout, classifier."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
        return self.classifier(self.dropout(hidden))


def make_splits(train_size: int = 20, *, name: str = "blobs", scale: float = 1.0) -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(train_size + 12) % 3
    images = torch.randn(len(labels), 1, 4, 4, generator=generator)
    images[:, 0, 0] += 3 * labels[:, None]
    images *= scale
    train, rest = slice(train_size), slice(train_size, None)
    return DataSplits(
        name=name,
        train=Jittered(images[train], labels[train]),
        evaluation=TensorDataset(images[rest], labels[rest]),
        calibration=TensorDataset(images[train], labels[train]),
        class_names=("a", "b", "c"),
        input_shape=(1, 4, 4),
    )


def make_net(width: int = 4) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(width)


@pytest.fixture
def splits() -> DataSplits:
    return make_splits()


@pytest.fixture
def splits_of() -> Callable[..., DataSplits]:
    return make_splits


@pytest.fixture
def net() -> Callable[..., Net]:
    return make_net
