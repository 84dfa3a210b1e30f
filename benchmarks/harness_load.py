"""A competing load on the CPUs: processes that compute and move memory, all the time or in bursts."""

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

KINDS = ("one busy process", "one busy process on each CPU", "bursts")
_CALCULATION_SECONDS = 0.02


@contextmanager
def competing_load(kind: str | None, *, seed: int, cpus: int) -> Iterator[None]:
    """Keep other processes busy meanwhile. ``kind`` is one of ``KINDS``, None for no load.

    Bursts: one process on each CPU that works for 0.1 to 3 s, then rests as long, and so on, by chance.
    """
    count = 0 if kind is None else 1 if kind == KINDS[0] else cpus
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(kind == KINDS[2], seed * 100 + number), daemon=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(bursts: bool, seed: int) -> None:
    generator = random.Random(seed)
    values = np.random.default_rng(seed).standard_normal(4_000_000)
    while True:
        working = generator.uniform(0.1, 3.0) if bursts else float("inf")
        end = time.monotonic() + working
        while time.monotonic() < end:
            _calculate(values)
        time.sleep(generator.uniform(0.1, 3.0))


def _calculate(values: np.ndarray) -> None:
    begun = time.monotonic()
    np.sqrt(np.abs(values, out=values), out=values)
    while time.monotonic() - begun < _CALCULATION_SECONDS:
        sum(range(1000))
