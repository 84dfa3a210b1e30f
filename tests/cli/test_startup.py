"""Help needs nothing heavy, and a terminal is met with bars."""

import os
import subprocess
import sys

import pytest

HEAVY = ["torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "onnx_graphsurgeon", "numpy", "scipy"]
HEAVY += ["sklearn", "matplotlib", "tensorrt", "tensorrt_rtx", "timm", "accelerate", "safetensors", "jinja2", "psutil"]

PROBE = """
import sys
from prune2deploy.cli.app import main
sys.argv = ["p2d", *{arguments!r}]
try:
    main()
except SystemExit:
    pass
print(*sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["prune", "--help"],
        ["prune", "m", "--flops", "2"],
        ["train", "--help"],
        ["train", "m", "--method", "3sp"],
        ["train", "m", "--interval", "5"],
    ],
)
def test_what_needs_no_stage_imports_nothing_heavy(arguments):
    program = PROBE.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


def test_no_arguments_show_the_help():
    done = subprocess.run([sys.executable, "-m", "prune2deploy"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage: p2d" in done.stdout


def test_completion_knows_the_commands():
    environment = os.environ | {"_P2D_COMPLETE": "complete_bash", "COMP_WORDS": "p2d in", "COMP_CWORD": "1"}
    program = "from prune2deploy.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["inspect"]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_a_terminal_gets_bars_that_leave_standard_output_clean():
    import pty

    program = """
import time
from prune2deploy.cli.console import print_line, working
with working(quiet=False, verbose=False) as progress:
    with progress.task("pruning [bold] names", total=2) as task:
        task.describe("group 1")
        task.advance()
        progress.note("kept [16] channels")
        time.sleep(0.3)
print_line("the result")
"""
    terminal, terminal_end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=terminal_end)
    os.close(terminal_end)
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    out, _ = process.communicate(timeout=30)
    os.close(terminal)
    assert out == b"the result\n"
    assert b"note: kept [16] channels" in shown
    assert b"pruning [bold] names" in shown
