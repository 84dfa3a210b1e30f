"""The ready workflow file: every step is one that a CI service can run, and the whole job runs here."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from prune2deploy.bench.claims.file import read_claims
from prune2deploy.cli.app import app

WORKFLOW = Path(__file__).parents[2] / "examples" / "ci" / "prune-and-prove.yml"
DOCUMENT: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
BENCH = "Measure, and judge the claims"
CLAIMS = WORKFLOW.with_name("claims.toml")


def scripts(job: str) -> dict[str, str]:
    """What the steps of a job run, by name."""
    return {step["name"]: step["run"] for step in DOCUMENT["jobs"][job]["steps"] if "run" in step}


def commands(job: str) -> list[list[str]]:
    """The arguments of every p2d command of a job, with the workflow's own settings put in."""
    found = []
    for script in scripts(job).values():
        text = re.sub(r"\\\n\s*", " ", script)
        text = re.sub(r'"\$(\w+)"', lambda match: DOCUMENT["env"].get(match[1], match[0]), text)
        for line in text.splitlines():
            if line.startswith("p2d ") and not line.startswith("p2d()"):
                found.append(shlex.split(line.partition("||")[0])[1:])
    return found


def run(script: str, folder: Path, *, path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a step as the service does: bash that stops at the first failure, with the settings as environment."""
    environment = {**os.environ, **DOCUMENT["env"], **settings, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_every_step_has_one_thing_to_do_and_jobs_wait_for_jobs_that_exist() -> None:
    assert DOCUMENT["name"]
    assert True in DOCUMENT, "YAML reads the key `on` as true"
    for job in DOCUMENT["jobs"].values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert job.get("needs", "prune") in DOCUMENT["jobs"]


@pytest.mark.parametrize("job", DOCUMENT["jobs"])
def test_every_command_line_is_one_that_p2d_takes(job: str) -> None:
    group = typer.main.get_command(app)
    lines = commands(job)
    assert len(lines) >= 4
    for name, *arguments in lines:
        # Raises where an option does not exist, lacks its value or has one of another type.
        group.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]


def test_the_file_of_claims_is_the_workflow_s_and_is_read() -> None:
    assert (WORKFLOW.parents[2] / DOCUMENT["env"]["CLAIMS"]).samefile(CLAIMS)
    claims = read_claims(CLAIMS)
    assert {claim.kind for claim in claims} == {
        "speedup", "latency_ms", "accuracy_drop_points", "size_fraction", "memory_mb",
    }  # fmt: skip
    assert all(claim.name for claim in claims)


@pytest.mark.parametrize(("verdict", "expected"), [(0, 0), (11, 0), (10, 10), (12, 12), (5, 5)])
def test_a_refuted_claim_fails_the_job_and_an_undecided_one_warns(tmp_path: Path, verdict: int, expected: int) -> None:
    stand_in = tmp_path / "p2d"
    stand_in.write_text(f"#!/bin/sh\nexit {verdict}\n")
    stand_in.chmod(0o755)
    done = run(scripts("prune")[BENCH], tmp_path, path=tmp_path)
    assert done.returncode == expected
    assert ("::warning::" in done.stdout) == (verdict == 11)


@pytest.mark.slow
def test_the_job_runs_from_training_to_the_report(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    settings = {"EPOCHS": "1", "TUNING_EPOCHS": "1", "BENCH_SECONDS": "4", "OMP_NUM_THREADS": "1"}
    claims = tmp_path / "claims.toml"
    claims.write_text(
        "[[claim]]\nspeedup = 0.01\n[[claim]]\nsize_fraction = 0.9\n[[claim]]\naccuracy_drop_points = 100\n"
    )
    for name, script in scripts("prune").items():
        if name == "Install":
            continue
        done = run(script, tmp_path, path=Path(sys.executable).parent, CLAIMS=str(claims), **settings)
        # On a busy machine the control may fail, which is a verdict on the machine and not on the workflow.
        assert done.returncode in ((0, 12) if name == BENCH else (0,)), f"{name}: {done.stderr}"
    upload = next(step for step in DOCUMENT["jobs"]["prune"]["steps"] if "upload-artifact" in step.get("uses", ""))
    for folder in upload["with"]["path"].split():
        assert any((tmp_path / folder).iterdir()), folder
    run_folder = tmp_path / "run" / "pruning"
    assert (run_folder / "report" / "junit.xml").is_file()
    for precision in ("fp32", "fp16"):
        assert (run_folder / "engines" / f"pruned-{precision}-trt-rtx.engine").is_file()
