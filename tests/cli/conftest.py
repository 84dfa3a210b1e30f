"""The command line without its stages: a stand-in for one pipeline function."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

FUNCTIONS = {
    "train": "run_train",
    "prune": "run_prune",
    "family": "run_family",
    "inspect": "run_inspect",
    "latency.table": "run_latency_table",
    "export": "run_export",
    "build": "run_build",
    "compare": "run_compare",
    "bench": "run_bench_command",
    "report": "run_report",
    "demo": "run_demo",
    "doctor": "run_doctor",
}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], list[Any]]:
    """Replace what one command calls; gives the list that collects the requests it was called with."""

    def replace(command: str, behaviour: Callable[..., Any]) -> list[Any]:
        requests: list[Any] = []

        def function(*arguments: Any) -> Any:
            requests.append(arguments[0])
            return behaviour(arguments[-1])

        name = f"prune2deploy.pipeline.{command}"
        module = ModuleType(name)
        setattr(module, FUNCTIONS[command], function)
        monkeypatch.setitem(sys.modules, name, module)
        return requests

    return replace
