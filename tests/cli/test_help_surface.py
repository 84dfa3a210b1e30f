"""What a user can type is what docs/cli.md promises for this version."""

import re
from pathlib import Path

import pytest
import typer

from prune2deploy import __version__
from prune2deploy.cli.app import app
from prune2deploy.pipeline.method_options import METHOD_OPTIONS

COMMANDS = ["train", "prune", "family", "export", "build", "bench", "report", "compare", "demo", "inspect"]
COMMANDS += ["latency-table", "doctor"]

RUNNING = {"--quiet", "--verbose"}
TRAINING = {
    "--epochs",
    "--lr",
    "--batch-size",
    "--optimizer",
    "--schedule",
    "--warmup-epochs",
    "--label-smoothing",
    "--weight-decay",
    "--mixed-precision",
}
LATENCY = {"--latency", "--memory", "--batch", "--threads", "--solver-seconds"}
OPTIONS = {
    "train": TRAINING
    | RUNNING
    | {"--data", "--input", "--method", "--variants", "--seed", "--resume", "--out"}
    | {"--ema", "--compile", "--micro-batches", "--flops", "--params", "--ranking", "--scope", "--align", "--engine"}
    | {"--precision", "--protect", "--only", "--exact-only"}
    | LATENCY
    | {option for taken in METHOD_OPTIONS.values() for option in taken},
    "prune": TRAINING
    | RUNNING
    | {"--flops", "--params", "--method", "--criterion", "--ranking", "--scope", "--align", "--engine", "--precision"}
    | {"--protect", "--only", "--exact-only", "--backend", "--attention", "--flop-penalty", "--cuts", "--every-steps"}
    | {"--distill", "--ema", "--compile", "--micro-batches"}
    | LATENCY
    | {"--pareto", "--variants", "--model", "--data", "--input", "--trust-pickle", "--seed", "--resume", "--out"},
    "family": RUNNING | {"--factors", "--resume"},
    "inspect": RUNNING
    | {"--model", "--input", "--scope", "--backend", "--attention", "--engine", "--precision"}
    | {"--trust-pickle", "--json"},
    "latency-table": RUNNING
    | {"--model", "--input", "--engine", "--precision", "--batch", "--threads", "--align", "--export", "--clear"}
    | {"--trust-pickle", "--json"},
    "export": RUNNING
    | {"--precision", "--normalize", "--softmax", "--input", "--top-k", "--batch", "--external-data", "--io-precision"}
    | {"--data", "--calibration", "--calibration-images", "--float-ends", "--max-drop", "--min-agreement"}
    | {"--engine", "--check-engine"},
    "build": RUNNING
    | {"--engine", "--precision", "--batch", "--threads", "--workspace", "--optimization-level", "--strip-weights"}
    | {"--compute-capability", "--hardware-compatible", "--version-compatible", "--no-timing-cache"},
    "bench": RUNNING
    | {"--engine", "--precision", "--batch", "--threads", "--builds", "--half-width", "--max-seconds"}
    | {"--shape", "--baseline", "--baseline-tolerance"}
    | {"--claim", "--claims", "--scenario", "--profile", "--energy", "--memory"}
    | {"--seed", "--out", "--json"},
    "report": RUNNING | {"--out"},
    "compare": RUNNING | {"--tolerance", "--json"},
    "demo": RUNNING | {"--engine", "--threads", "--seed", "--resume", "--out"},
    "doctor": RUNNING | {"--json"},
}
DOCUMENTED = Path(__file__).parents[2] / "docs" / "cli.md"


def offered(command: str) -> set[str]:
    parameters = typer.main.get_command(app).commands[command].params
    return {
        text
        for parameter in parameters
        for text in parameter.opts
        if text.startswith("--") and not getattr(parameter, "hidden", False)
    }


def test_the_commands_are_those_of_this_version():
    assert list(typer.main.get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_offers_its_options(command):
    assert offered(command) - {"--help"} == OPTIONS[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_explains_itself_with_an_example(command, run_p2d, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run_p2d(command, "--help")
    assert result.exit_code == 0
    assert f"Example: p2d {command}" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_has_words_of_its_own(command):
    for parameter in typer.main.get_command(app).commands[command].params:
        if not getattr(parameter, "hidden", False):
            assert parameter.help, f"{command} {parameter.name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_on_the_public_page(command):
    page = DOCUMENTED.read_text(encoding="utf-8")
    missing = {option for option in offered(command) if not re.search(rf"`[^`\n]*{re.escape(option)}\b", page)}
    assert missing == set()


def test_version_is_printed_alone(run_p2d):
    result = run_p2d("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"p2d {__version__}\n", "")
