"""Builds that are interrupted, and builds of several processes into one file."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.tensorrt import family as tensorrt_family
from prune2deploy.engines.tensorrt.engine_file import read_record
from prune2deploy.engines.tensorrt.family import TensorRTRTXEngine
from prune2deploy.errors import StorageError
from prune2deploy.storage import sha256_of_file

pytest.importorskip("tensorrt_rtx")

ENGINE = TensorRTRTXEngine()
BUILD = """
import json, sys
from pathlib import Path
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.tensorrt.family import TensorRTRTXEngine
print("ready", flush=True)
sys.stdin.readline()
summary = TensorRTRTXEngine().build_file(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions(batches=(1, 4)))
print(json.dumps([summary.reused, summary.bytes_total]))
"""


@pytest.fixture
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of many layers, so that its build has many steps."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], "input"
    for number in range(40):
        kernel = generator.standard_normal((16, 3 if number == 0 else 16, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        inner, outer = f"c{number}", "output" if number == 39 else f"r{number}"
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [inner], name=inner, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [inner], [outer], name=outer))
        last = outer
    image, output = ["batch", 3, 16, 16], ["batch", 16, 16, 16]
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, output)],
        weights,
    )
    path = tmp_path_factory.mktemp("network") / "deep.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


class Bar:
    """A progress whose bar does something once, when it has moved."""

    def __init__(self, act: object = None) -> None:
        self.act, self.shares, self.texts, self.told = act, [0.0], [], []

    @contextmanager
    def task(self, description: str, *, total: float | None = None) -> Iterator["Bar"]:
        assert total == 1
        yield self

    def advance(self, steps: float = 1) -> None:
        self.shares.append(self.shares[-1] + steps)
        if callable(self.act) and len(self.shares) == 3:
            self.act()

    def describe(self, text: str) -> None:
        self.texts.append(text)

    def note(self, text: str) -> None:
        self.told.append(text)


def test_a_build_shows_how_far_it_is(deep: Path, tmp_path: Path) -> None:
    bar = Bar()
    ENGINE.build_file(deep, tmp_path / "deep.engine", BuildOptions(), progress=bar)
    assert bar.shares == sorted(bar.shares)
    assert bar.shares[-1] == pytest.approx(1)
    assert len(bar.shares) > 10
    assert len(set(bar.texts)) > 1


def test_ctrl_c_ends_a_build_at_its_next_step_and_leaves_nothing(deep: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.3)  # the builder's thread waits here until the main thread has seen it

    bar = Bar(interrupt)
    # Started in the background, shells let processes ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ENGINE.build_file(deep, tmp_path / "out" / "deep.engine", BuildOptions(), progress=bar)
    finally:
        signal.signal(signal.SIGINT, before)
    assert bar.shares[-1] < 1
    assert not (tmp_path / "out").exists()
    assert not ENGINE.build_file(deep, tmp_path / "out" / "deep.engine", BuildOptions()).reused


def test_a_bar_that_fails_ends_the_build_with_its_error(deep: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        ENGINE.build_file(deep, tmp_path / "out" / "deep.engine", BuildOptions(), progress=Bar(fail))
    assert not (tmp_path / "out").exists()


def test_of_two_processes_one_builds_and_the_other_takes_what_it_built(deep: Path, tmp_path: Path) -> None:
    path = tmp_path / "engines" / "deep.engine"
    command = [sys.executable, "-c", BUILD, str(deep), str(path)]
    builders = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.write("\n")
        builder.stdin.flush()
    told = [json.loads(builder.communicate(timeout=120)[0]) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sorted(reused for reused, _ in told) == [False, True]
    assert {size for _, size in told} == {path.stat().st_size}
    assert read_record(path).engine_sha256 == sha256_of_file(path)
    assert sorted(left.name for left in path.parent.iterdir()) == ["deep.engine", "deep.engine.json"]


def test_a_process_that_never_ends_is_not_waited_for_forever(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filelock = pytest.importorskip("filelock")
    monkeypatch.setattr(tensorrt_family, "LOCK_SECONDS", 0.1)
    with (
        filelock.FileLock(tmp_path / ".deep.engine.lock"),
        pytest.raises(StorageError, match=r"deep\.engine: another process is writing it"),
    ):
        ENGINE.build_file(deep, tmp_path / "deep.engine", BuildOptions())
    assert not (tmp_path / "deep.engine").exists()
