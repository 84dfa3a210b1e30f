"""Random numbers that depend on (seed, epoch) alone, so that a resumed epoch repeats the interrupted one exactly."""

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler


def epoch_seed(seed: int, epoch: int, *, process: int = 0) -> int:
    """A seed for one epoch and process, unrelated to those of its neighbours. Range: [0, 2**32)."""
    return int(np.random.SeedSequence([seed, epoch, process]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices), which augmentation and dropout use."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller's global generators back as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class EpochOrder(Sampler[int]):
    """Shuffles a data set anew in each epoch, the same way for the same (seed, epoch)."""

    def __init__(self, dataset: Sized, *, seed: int) -> None:
        self._size = len(dataset)
        self._seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives (Accelerate's loader passes its own on)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self.epoch))
        yield from torch.randperm(self._size, generator=generator).tolist()

    def __len__(self) -> int:
        return self._size
