"""``torchrun -m prune2deploy``: one run folder, one voice, one exit code.

Most tests start the processes as ``torchrun`` does, but fork them from one that has imported torch already.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not hasattr(os, "fork"), reason="needs torch.distributed and fork"
)

NURSERY = """
import json, os, signal, sys
import prune2deploy.pipeline.export, prune2deploy.pipeline.prune, prune2deploy.pipeline.train
import accelerate
from prune2deploy.cli.app import main

signal.signal(signal.SIGINT, signal.default_int_handler)

def child(asked, rank):
    os.chdir(asked["folder"])
    os.environ |= asked["environment"] | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(f"{asked['logs']}-{rank}-{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["p2d", *asked["arguments"]]
    code = 1
    try:
        exec(asked["before"], {"RANK": rank})
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
    asked, children = json.loads(line), []
    for rank in range(int(asked["environment"]["WORLD_SIZE"])):
        children.append(os.fork())
        if children[-1] == 0:
            child(asked, rank)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)
"""

TRAIN = ("train", "tiny:Tiny", "--epochs", 2, "--batch-size", 256)

STOP_AT_EPOCH = """
import os, signal
from prune2deploy.training import loop
ask = loop._Training._ask
def ask_and_stop(self, moment):
    if moment.step == 8 and {condition}:
        {stop}
    return ask(self, moment)
loop._Training._ask = ask_and_stop
"""


@dataclass(frozen=True, kw_only=True)
class Together:
    """How the processes of one command ended, by rank."""

    codes: list[int]
    stdout: list[str]
    stderr: list[str]

    @property
    def error_lines(self) -> list[str]:
        return [line for text in self.stderr for line in text.splitlines() if line.startswith("p2d: error")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_source):
    folder = tmp_path_factory.mktemp("together") / "here"
    folder.mkdir()
    (folder / "tiny.py").write_text(tiny_source)
    return folder


@pytest.fixture(scope="module")
def together(folder) -> Iterator[Callable[..., Together]]:
    """Run ``p2d`` in two processes: ``together("train", ..., before="code that knows RANK")``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None

    def run(*arguments: object, before: str = "") -> Together:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        logs = folder.with_name("log")
        asked = {
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "before": before,
            "environment": meeting,
            "logs": str(logs),
        }
        nursery.stdin.write(json.dumps(asked) + "\n")
        nursery.stdin.flush()
        answer = nursery.stdout.readline()
        assert answer, "the nursery of processes died"
        return Together(
            codes=json.loads(answer),
            stdout=[Path(f"{logs}-{rank}-stdout").read_text() for rank in range(2)],
            stderr=[Path(f"{logs}-{rank}-stderr").read_text() for rank in range(2)],
        )

    yield run
    nursery.stdin.close()
    nursery.wait(timeout=30)


@pytest.fixture(scope="module")
def trained(together, folder):
    """The run of a training that nothing disturbed, and how it ended."""
    done = together(*TRAIN)
    assert done.codes == [0, 0], done.stderr
    return folder / "p2d-runs" / (folder / "p2d-runs/latest").readlink(), done


def outcome(run: Path) -> dict:
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["finished"]
    losses = [epoch["loss"] for epoch in manifest["variants"]["dense"]["training"]["history"]]
    weights = (run / "dense/model.safetensors").read_bytes()
    return {"losses": losses, "weights": weights[8 + int.from_bytes(weights[:8], "little") :]}


def test_two_processes_make_one_run_and_tell_of_it_once(trained, folder):
    run, done = trained
    assert len([path for path in (folder / "p2d-runs").iterdir() if not path.is_symlink()]) == 1
    assert json.loads((run / "run.json").read_text())["variants"]["dense"]["training"]["processes"] == 2
    assert f"trained model: p2d-runs/{run.name}/dense" in done.stdout[0]
    assert "training dense" in done.stderr[0]
    assert (done.stdout[1], done.stderr[1]) == ("", "")
    assert not list(folder.rglob("*.partial*"))


def test_pruning_makes_every_variant_in_two_processes(trained, together, folder):
    run, _ = trained
    done = together(
        "prune", run / "dense", "--flops", 0.4, "--method", "taylor", "--epochs", 1, "--batch-size", 256, "--out", "cut"
    )
    assert done.codes == [0, 0], done.stderr
    manifest = json.loads((folder / "cut/run.json").read_text())
    assert list(manifest["variants"]) == ["dense", "pruned", "reduced"]
    assert manifest["finished"]
    assert manifest["pruning"]["achieved"]["flops"] <= 0.4
    assert all(record["training"]["processes"] == 2 for record in manifest["variants"].values())
    assert done.stdout[0].count("run: cut") == 1
    assert (done.stdout[1], done.stderr[1]) == ("", "")
    assert not list((folder / "cut").rglob(".*"))


@pytest.mark.parametrize(
    ("method", "options"),
    [("epi", ("--prune-epoch", 1, "--flops", 0.5)), ("prunetrain", ("--penalty-ratio", 0.9, "--interval", 1))],
)
def test_training_under_a_method_runs_in_two_processes(method, options, together, folder):
    done = together(*TRAIN, "--method", method, *options, "--out", method)
    manifest = json.loads((folder / method / "run.json").read_text())
    assert set(manifest["variants"]) == {"dense", "pruned"}
    assert manifest["variants"]["pruned"]["training"]["processes"] == 2
    assert manifest["finished"]
    assert manifest["pruning"]["proof_relative_error"] < 1e-4
    # PruneTrain kills nothing in so few steps, which is code 3 once the run is kept.
    assert done.codes == ([0, 0] if method == "epi" else [3, 3]), done.stderr
    assert len(done.error_lines) == (0 if method == "epi" else 1)
    assert done.stdout[1] == ""


def test_weights_of_one_and_two_processes_load_alike(trained, folder):
    import prune2deploy as p2d

    run, _ = trained
    sys.path.insert(0, str(folder))
    try:
        model = p2d.load(run / "dense")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("tiny", None)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_resume_gives_the_same_bits(victim, trained, together, folder):
    """A real SIGKILL of one of them in its second epoch; no ``torchrun`` is there to end the other."""
    out = f"killed-{victim}"
    kill = STOP_AT_EPOCH.format(condition=f"RANK == {victim}", stop="os.kill(os.getpid(), signal.SIGKILL)")
    done = together(*TRAIN, "--out", out, before=kill)
    assert done.codes[victim] == -signal.SIGKILL
    assert done.codes[1 - victim] == 5, done.stderr
    assert [("ended without a word" in line, "--resume goes on" in line) for line in done.error_lines] == [(True, True)]
    again = together(*TRAIN, "--out", out, "--resume")
    assert again.codes == [0, 0], again.stderr
    assert outcome(folder / out) == outcome(trained[0])
    manifest = json.loads((folder / out / "run.json").read_text())
    assert manifest["variants"]["dense"]["training"]["resumed_at"] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_is_told_once_and_is_the_exit_code_of_both(rank, together, folder):
    fail = STOP_AT_EPOCH.format(
        condition=f"RANK == {rank}",
        stop="from prune2deploy.errors import StorageError; raise StorageError('is full', where='disk')",
    )
    done = together(*TRAIN, "--out", f"failed-{rank}", before=fail)
    assert done.codes == [6, 6], done.stderr
    assert done.error_lines == ["p2d: error: disk: is full"]
    assert "Traceback" not in "".join(done.stderr)


def test_an_error_of_both_is_told_once_and_leaves_no_folder(together, folder):
    done = together("train", "tiny:raising", "--out", "never")
    assert done.codes == [2, 2], done.stderr
    assert len(done.error_lines) == 1
    assert "the weights are elsewhere" in done.error_lines[0]
    assert not (folder / "never").exists()


def test_a_full_disk_on_the_main_process_ends_both(together, folder):
    """Only the main process writes, so only it can meet a full disk."""
    full = """
import errno, os
from prune2deploy.training.state import TrainingState
def save(self, path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
TrainingState.save = save
"""
    done = together(*TRAIN, "--out", "full", before=full)
    assert done.codes == [6, 6], done.stderr
    assert len(done.error_lines) == 1
    assert "No space left on device" in done.error_lines[0]


def test_a_bug_shows_one_traceback(together):
    bug = "import prune2deploy.pipeline.train as train\ntrain.run_train = lambda request, progress: 1 / 0\n"
    done = together(*TRAIN, before=bug)
    assert done.codes == [1, 1]
    assert "".join(done.stderr).count("ZeroDivisionError: division by zero") == 1


def test_ctrl_c_stops_both(together):
    stop = STOP_AT_EPOCH.format(condition="True", stop="os.kill(os.getpid(), signal.SIGINT)")
    done = together(*TRAIN, "--out", "stopped", before=stop)
    assert done.codes == [130, 130], done.stderr
    assert done.error_lines == ["p2d: error: interrupted; the same command with --resume goes on"]


def test_a_folder_that_is_taken_is_refused_by_both(trained, together, folder):
    run, _ = trained
    before = (run / "run.json").read_bytes()
    done = together(*TRAIN, "--out", f"p2d-runs/{run.name}")
    assert done.codes == [2, 2], done.stderr
    assert len(done.error_lines) == 1
    assert "--resume" in done.error_lines[0]
    assert (run / "run.json").read_bytes() == before


@pytest.fixture
def signals_kept():
    """One of several processes ignores signals once it has failed; the tests that follow shall not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_kept")
@pytest.mark.parametrize("command", ["inspect", "export", "build", "bench", "report", "demo", "doctor"])
def test_commands_for_one_process_refuse_several(command, run_p2d, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(os, "_exit", sys.exit)
    result = run_p2d(command, *(["model"] if command == "inspect" else []))
    assert result.exit_code == 2
    assert result.stderr == (
        f"p2d: error: p2d {command}: is for one process, and 2 were started; run it without torchrun or accelerate "
        "launch\n"
    )


def test_usage_errors_are_told_by_the_main_process_alone(together):
    done = together("prune", "model.pth", "--flops", 2)
    assert done.codes == [2, 2]
    assert len(done.error_lines) == 1
    assert done.stderr[1] == ""


def test_a_process_that_hangs_is_ended_when_another_failed(together):
    """The other waits for something that will never come, where no signal and no broken connection reach it."""
    hang = """
import prune2deploy.cli.together as together
import prune2deploy.pipeline.train as train
import signal, time
from prune2deploy.errors import EngineError
together._GRACE_SECONDS = 1.0
def run_train(request, progress):
    if RANK == 0:
        raise EngineError("the device is gone")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    time.sleep(600)
train.run_train = run_train
"""
    done = together(*TRAIN, before=hang)
    assert done.codes == [5, 5]
    assert done.error_lines == ["p2d: error: the device is gone"]


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    # Named for GPUs: on a CPU, accelerate starts several processes over MPI alone.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_the_launchers_themselves_start_it(launcher, folder):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "prune2deploy", *map(str, TRAIN), "--out", launcher]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / launcher / "run.json").read_text())
    assert manifest["variants"]["dense"]["training"]["processes"] == 2
    assert done.stdout.count("trained model:") == 1
