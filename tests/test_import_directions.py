"""The direction of imports between folders, read from the source, function bodies included: the map is `ALLOWED`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prune2deploy

PACKAGE = Path(prune2deploy.__file__).parent
NAME = "prune2deploy"

STAGES = {"model", "data", "graph", "importance", "budget", "surgery", "policies", "training", "checkpoint"}
STAGES |= {"export", "engines", "bench", "report", "latency"}
ALLOWED = {
    "cli": {"pipeline"},
    "pipeline": STAGES,
    "policies": {"importance", "budget", "graph"},
    "importance": {"graph", "model"},
    "budget": {"graph", "model"},
    "surgery": {"budget", "graph", "model"},
    "graph": {"model"},
    "checkpoint": {"model", "surgery", "budget.plan"},
    "training": {"policies.policy", "surgery", "data", "budget.plan"},
    "export": {"model", "data"},
    "bench": {"engines"},
    "latency": {"engines", "bench", "budget.surface", "graph.unit"},
    "report": {"bench"},
    "engines": set(),
    "model": {"user_code"},
    "data": {"user_code"},
}
FOR_ALL = {"errors", "run", "storage", "progress", "evaluation", "processes"}
WITHOUT_TORCH = ["engines", "bench", "report", "latency"]
TORCH_FAMILY = {"torch", "torchvision", "timm", "accelerate", "safetensors", "onnxscript"}
# The torch engines run bundles with torch by their nature: the one exception, and they load no other stage.
TORCH_ENGINE = "engines/torch/"
FOR_THE_TORCH_ENGINE = "checkpoint.bundle.load_bundle"


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder below the package, or the module's own name at the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything that a module imports, anywhere in it."""
    inside = [NAME, *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else inside[: len(inside) - node.level]
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """What a module imports of this package, without the package's name: ``graph.trace.trace``."""
    for name in imported(path):
        if name == NAME or name.startswith(f"{NAME}."):
            yield name.removeprefix(NAME).removeprefix(".")


def is_torch_engine(path: Path) -> bool:
    return path.relative_to(PACKAGE).as_posix().startswith(TORCH_ENGINE)


def permits(allowed: str, name: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def test_every_folder_has_its_place_on_the_map():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_go_one_way(room):
    permitted = ALLOWED[room] | FOR_ALL | {room, "__version__"}
    strays = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in (PACKAGE / room).rglob("*.py")
        for name in own_imports(path)
        if not any(permits(allowed, name) for allowed in permitted)
        if not (is_torch_engine(path) and name == FOR_THE_TORCH_ENGINE)
    }
    assert strays == set()


def test_what_everyone_imports_imports_no_stage():
    for name in FOR_ALL | {"user_code"}:
        strays = {used for used in own_imports(PACKAGE / f"{name}.py") if used.split(".")[0] not in FOR_ALL}
        assert strays <= {"__version__"}, name


def test_folders_form_no_cycle():
    edges: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for room, targets in edges.items():
        for path in (PACKAGE / room).rglob("*.py"):
            targets |= {name.split(".")[0] for name in own_imports(path)} & (set(ALLOWED) - {room})
    while leaves := [room for room, targets in edges.items() if not targets]:
        for leaf in leaves:
            del edges[leaf]
        for targets in edges.values():
            targets.difference_update(leaves)
    assert edges == {}, "these folders import each other"


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_the_right_half_names_no_torch(room):
    strays = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in (PACKAGE / room).rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] in TORCH_FAMILY and not is_torch_engine(path)
    }
    assert strays == set()


def test_importing_the_right_half_loads_no_torch():
    names = [
        ".".join([NAME, *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in modules()
        if room_of(path) in WITHOUT_TORCH and path.stem != "__main__"
    ]
    program = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    program += f"print(*sorted({TORCH_FAMILY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def as_library(path: Path) -> Iterator[ast.AST]:
    """The nodes of a module that run when it is imported or called: all but its ``__main__`` block."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if not (isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"):
            yield from ast.walk(statement)


def test_only_the_command_line_prints_or_exits():
    strays = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in modules()
        if room_of(path) != "cli"
        for node in as_library(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.exit", "exit", "quit", "os._exit"}
    }
    assert strays == set()


def test_the_reader_sees_imports_wherever_they_stand(tmp_path):
    path = PACKAGE / "graph" / "rules" / "imagined.py"
    source = tmp_path / "imagined.py"
    source.write_text(
        "from ..channels import Axis\ndef late():\n    import torch.nn\n    from prune2deploy.cli import app\n"
    )

    class Imagined(type(path)):
        def read_text(self, *args, **kwargs):
            return source.read_text()

    found = set(imported(Imagined(path)))
    assert found == {"prune2deploy.graph.channels.Axis", "torch.nn", "prune2deploy.cli.app"}
