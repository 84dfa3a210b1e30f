"""Running ``p2d``: in this process, or in processes of its own that can be interrupted and killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prune2deploy.cli.app import app
from prune2deploy.engines.cuda import CudaDevice, find_device

# A shell that starts a job in the background has it ignore Ctrl-C, and so would every program that is tested here.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none, rather than failing where somebody runs all tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not isinstance(find_device(), CudaDevice):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


# Imports the stages once and forks a child for each command, because importing torch takes longer than most tests.
NURSERY = """
import json, os, signal, sys
import prune2deploy as p2d
import prune2deploy.pipeline.bench, prune2deploy.pipeline.export
import prune2deploy.pipeline.prune, prune2deploy.pipeline.train
from prune2deploy.cli.app import main

def child(asked):
    os.chdir(asked["folder"])
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["p2d", *asked["arguments"]]
    code = 1
    try:
        exec(asked["before"], {})
        main()
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        child(json.loads(line))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps(status), flush=True)
"""

TINY = '''
import torch
from torch import nn


class Tiny(nn.Module):
    """Two convolutions and a classifier, wide enough to be pruned with aligned widths."""

    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.second = nn.Conv2d(64, 64, 3, stride=2, bias=False)
        self.last_norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, image):
        image = self.norm(self.first(image)).relu()
        return self.head(self.last_norm(self.second(image)).relu().mean((2, 3)))


class Branching(Tiny):
    def forward(self, image):
        if image.mean() > 0:
            return super().forward(image)
        return super().forward(-image)


class Flat(nn.Module):
    """Nothing in it can leave: the input and the output of the model bound its one layer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        return self.head(image.flatten(1))


def raising(num_classes=10):
    raise RuntimeError("the weights are elsewhere")
'''


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a command in a process of its own ended; ``code`` is negative where a signal killed it."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_p2d(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``p2d`` with these arguments, in this process."""

    def run(*arguments: object) -> Result:
        texts = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["p2d", *texts])
        return CliRunner().invoke(app, texts, prog_name="p2d")

    return run


@pytest.fixture(scope="module")
def own_process() -> Iterator[Callable[..., Finished]]:
    """Run ``p2d`` in a process of its own: ``own_process(folder, "train", ..., before="python code")``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None

    def run(folder: Path, *arguments: object, before: str = "") -> Finished:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        logs = folder.with_name(f"{folder.name}-stdout"), folder.with_name(f"{folder.name}-stderr")
        asked = {
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "before": before,
            "stdout": str(logs[0]),
            "stderr": str(logs[1]),
        }
        nursery.stdin.write(json.dumps(asked) + "\n")
        nursery.stdin.flush()
        answer = nursery.stdout.readline()
        assert answer, "the nursery of processes died"
        return Finished(code=json.loads(answer), stdout=logs[0].read_text(), stderr=logs[1].read_text())

    yield run
    nursery.stdin.close()
    nursery.wait(timeout=30)


@pytest.fixture(scope="session")
def tiny_source() -> str:
    """A module with factories: ``Tiny``, ``Branching`` (no export), ``Flat`` (nothing to prune) and ``raising``."""
    return TINY
