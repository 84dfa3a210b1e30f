"""Memory that ran out is told as that (exit code 5), and not as a fault of the user's model, data or file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune2deploy.checkpoint.pickles import unpickle_trusting
from prune2deploy.errors import InputError
from prune2deploy.export.evaluation_set import make_evaluation_set
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.graph.trace import trace
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.user_code import import_object

MODULE = """
import torch
from torch import nn

ERROR = torch.OutOfMemoryError if {device} else MemoryError

class Greedy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)

    def forward(self, image):
        raise ERROR("not enough")

def model():
    raise ERROR("not enough")

class Pickled:
    def __reduce__(self):
        return model, ()
"""


class Greedy(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)
        self.error = error

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise self.error("not enough")


ERRORS = [MemoryError, torch.OutOfMemoryError]
DATA = TensorDataset(torch.zeros(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64))
WORK: dict[str, Callable[[nn.Module, Path], object]] = {
    "tracing": lambda model, folder: trace(model, (torch.zeros(1, 1, 3, 3),)),
    "exporting": lambda model, folder: export_onnx(model, folder / "model.onnx", input_shape=(1, 3, 3)),
    "evaluating": lambda model, folder: make_evaluation_set({"dense": model}, DATA, input_shape=(1, 3, 3)),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("work", WORK)
def test_in_the_code_of_a_model(work: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match="not enough"):
        WORK[work](Greedy(error).eval(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", ERRORS)
def test_in_code_that_builds_a_model_or_is_unpickled(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"greedy_{error.__name__.lower()}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(device=error is torch.OutOfMemoryError))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(error, match="not enough"):
        build_model(ModelSpec.parse(f"{name}:model"), seed=0)
    pickled = import_object(f"{name}:Pickled", error_type=InputError)
    assert isinstance(pickled, type)
    torch.save(pickled(), tmp_path / "model.pt")
    with pytest.raises(error, match="not enough"):
        unpickle_trusting(tmp_path / "model.pt")


def test_the_command_line_says_what_to_lower_and_leaves_with_5(
    run_p2d, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greedy_on_cpu.py").write_text(MODULE.format(device=False))
    result = run_p2d("inspect", "greedy_on_cpu:Greedy", "--input", "1x8x8")
    assert result.exit_code == 5
    assert "there is not enough memory; lower" in result.stderr


class GreedyOnceItRuns(Greedy):
    """Cannot be traced, for another reason; looking closer at why takes the memory."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            raise ValueError("cannot be followed")
        return super().forward(image)


@pytest.mark.parametrize("error", ERRORS)
def test_while_looking_why_a_model_cannot_be_traced(error: type[Exception]) -> None:
    with pytest.raises(error, match="not enough"):
        trace(GreedyOnceItRuns(error).eval(), (torch.zeros(1, 1, 3, 3),))
