"""What doctor says of a machine."""

import shutil
from types import SimpleNamespace

import pytest

from prune2deploy.engines.engine import Availability
from prune2deploy.engines.registry import all_engines
from prune2deploy.pipeline import doctor


class Described:
    """An engine that only tells whether it is usable."""

    def __init__(self, name, **availability):
        self.name = name
        self.precisions = frozenset({"fp32"})
        self._availability = Availability(**availability)

    def availability(self):
        return self._availability


RUNS = Described("runs", runs=True, builds=True, version="1.0", device="CPU")
ABSENT = Described("absent", runs=False, builds=False, reason="is not installed", hint="pip install it")


def test_this_machine_is_usable_and_every_registered_engine_is_listed():
    outcome = doctor.run_doctor()
    rows = {row["name"]: row for row in outcome.document["engines"]}
    assert set(rows) == {engine.name for engine in all_engines()}
    assert rows["ort-cpu"]["runs"]
    assert outcome.usable
    assert outcome.document["torch"]["works"]


def test_a_machine_where_no_engine_runs_is_not_usable():
    outcome = doctor.run_doctor(engines=[ABSENT])
    assert not outcome.usable
    assert not outcome.document["usable"]
    assert "absent: pip install it" in outcome.advice


def test_one_running_engine_is_enough_and_needs_no_advice():
    outcome = doctor.run_doctor(engines=[ABSENT, RUNS])
    assert outcome.usable
    assert not any(advice.startswith("runs:") for advice in outcome.advice)


def test_a_nearly_full_disk_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 20))
    outcome = doctor.run_doctor(engines=[RUNS])
    assert any("GiB free" in advice for advice in outcome.advice)


@pytest.mark.parametrize(("engines", "code"), [([RUNS], 0), ([ABSENT], 5)])
def test_the_command_serves_as_a_health_check(engines, code, monkeypatch):
    from typer.testing import CliRunner

    from prune2deploy.cli.app import app

    monkeypatch.setattr(doctor, "all_engines", lambda: tuple(engines))
    result = CliRunner().invoke(app, ["doctor"], prog_name="p2d")
    assert result.exit_code == code
    assert engines[0].name in result.stdout
