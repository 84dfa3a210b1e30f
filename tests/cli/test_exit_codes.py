"""Whatever a stage raises, the user gets one line and the documented code."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from prune2deploy import errors

PRUNE = ("prune", "model.pth", "--flops", "0.33")

STUBBED = """
import sys
from types import ModuleType
from prune2deploy.cli.app import main

def run_prune(request, progress):
    {body}

module = ModuleType("prune2deploy.pipeline.prune")
module.run_prune = run_prune
sys.modules[module.__name__] = module
sys.argv = ["p2d", "prune", "model.pth", "--flops", "0.33"]
main()
"""


def raising(error):
    def behave(progress):
        raise error

    return behave


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("is wrong"), 2),
        (errors.CheckpointError("is wrong"), 2),
        (errors.ModelError("is wrong"), 2),
        (errors.DataError("is wrong"), 2),
        (errors.TargetError("is wrong"), 3),
        (errors.ProofError("is wrong"), 4),
        (errors.ParityError("is wrong"), 4),
        (errors.EngineError("is wrong"), 5),
        (errors.StorageError("is wrong"), 6),
    ],
)
def test_an_expected_error_is_one_line_and_its_code(error, code, stage, run_p2d):
    stage("prune", raising(error))
    result = run_p2d(*PRUNE)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "p2d: error: is wrong\n"


def test_an_error_of_several_lines_is_shown_as_one(stage, run_p2d):
    stage("prune", raising(errors.ModelError("cannot be exported\n  at line 3", where="net.py", hint="change it")))
    assert run_p2d(*PRUNE).stderr == "p2d: error: net.py: cannot be exported at line 3; change it\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_disk_is_code_6_wherever_it_is_met(number, stage, run_p2d):
    stage("prune", raising(OSError(number, os.strerror(number), "run/weights")))
    result = run_p2d(*PRUNE)
    assert result.exit_code == 6
    assert result.stderr.startswith("p2d: error: run/weights: cannot be written")
    assert result.stderr.count("\n") == 1


def test_too_little_memory_says_what_to_lower(stage, run_p2d):
    stage("prune", raising(MemoryError()))
    result = run_p2d(*PRUNE)
    assert result.exit_code == 5
    assert "--batch-size" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c_says_that_resume_goes_on(stage, run_p2d):
    stage("prune", raising(KeyboardInterrupt()))
    result = run_p2d(*PRUNE)
    assert result.exit_code == 130
    assert result.stderr == "p2d: error: interrupted; the same command with --resume goes on\n"


def test_ctrl_c_in_a_command_that_cannot_resume_promises_nothing(stage, run_p2d):
    stage("export", raising(KeyboardInterrupt()))
    result = run_p2d("export")
    assert (result.exit_code, result.stderr) == (130, "p2d: error: interrupted\n")


def test_a_bug_keeps_its_exception(stage, run_p2d):
    stage("prune", raising(ZeroDivisionError("division by zero")))
    result = run_p2d(*PRUNE)
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def test_a_bug_shows_a_plain_traceback_and_asks_for_a_report():
    program = STUBBED.format(body="return 1 / 0")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "in run_prune" in done.stderr
    assert "ZeroDivisionError: division by zero\nThis is a bug in p2d." in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_stops_the_work_and_says_how_to_go_on(number, code, word):
    program = STUBBED.format(body="print('ready', flush=True); import time; time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while b"ready" not in process.stderr.readline():
        pass
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == b""
    assert err.decode() == f"p2d: error: {word}; the same command with --resume goes on\n"


def test_a_reader_that_leaves_is_met_in_silence():
    program = STUBBED.replace("prune", "inspect").format(
        body="from prune2deploy.pipeline.outcomes import GroupRow, InspectOutcome; "
        "row = GroupRow(name='n' * 99, width=8, channels=8, exact=True, stream=False); "
        "return InspectOutcome(model='m', input_shape=(1,), flops=1, parameters=1, groups=(row,) * 9999, frozen=())"
    )
    program = program.replace("inspect2deploy", "prune2deploy").replace(', "--flops", "0.33"', "")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141


def test_usage_errors_are_one_line_with_the_way_to_the_help(run_p2d):
    for arguments, start in [
        (["prune"], "p2d: error: Missing argument"),
        (["prune", "a", "--nonsense"], "p2d: error: No such option: --nonsense"),
        (["prune", "a", "--epochs", "many"], "p2d: error: Invalid value for '--epochs'"),
        (["squeeze"], "p2d: error: No such command 'squeeze'"),
    ]:
        result = run_p2d(*arguments)
        assert result.exit_code == 2, arguments
        assert result.stdout == ""
        assert result.stderr.startswith(start)
        assert result.stderr.endswith("--help`\n")
        assert result.stderr.count("\n") == 1
