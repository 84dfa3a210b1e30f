"""One run, one or several processes: which of them this is, and what all of them are to agree on.

``torchrun`` and ``accelerate launch`` start the same command several times and say in the environment who is who.
The rule is then: **every process computes alike, the main one writes, and what was decided is the main one's.** Disk
is touched inside ``on_main``, which gives every process the result or the error. With one process nothing here imports
torch or costs anything.

Every function below ``is_main`` must be called by all processes, in the same order.
"""

import os
from collections.abc import Callable
from typing import TypeVar

from prune2deploy.errors import EngineError, P2DError

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
_SIZES_HERE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_TRUE = ("1", "true", "yes", "on", "y", "t")

Result = TypeVar("Result")

# True while the main process does what it alone does: there, nothing is to be agreed on.
_main_alone = False


def count() -> int:
    """How many processes work on this run, as the program that started them says; 1 where none does."""
    return max(_from_environment(_SIZES, otherwise=1), 1)


def index() -> int:
    """The number of this process, from 0."""
    return _from_environment(_RANKS, otherwise=0) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one process that writes and tells."""
    return index() == 0


def join() -> None:
    """Meet the other processes: over NCCL on GPUs, over Gloo on a CPU. Waits for all of them; nothing with one.

    Raises:
        EngineError: they cannot be met, or each would train by itself.
    """
    if count() == 1:
        return
    from accelerate.state import PartialState

    _check_devices()
    try:
        met = PartialState(cpu=without_accelerator()).num_processes
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"{count()} processes were started, but cannot reach each other ({str(error).splitlines()[0]})",
            hint="start them with torchrun or accelerate launch",
        ) from error
    if met != count():
        raise EngineError(
            f"{count()} processes were started, but each of them is alone",
            hint="start them with torchrun or accelerate launch, which tell each its GPU",
        )


def without_accelerator() -> bool:
    """Whether this process is to compute on the CPU: there is nothing else, or the user wants it so.

    It has to be said outright, as Accelerate would otherwise take each of several processes without a GPU for the only
    one.
    """
    import torch

    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in _TRUE or not torch.accelerator.is_available()


def shared(value: Result) -> Result:
    """The main process's ``value``, on every process. It is pickled."""
    return on_main(lambda: value)


def on_main(work: Callable[[], Result]) -> Result:
    """Have the main process do ``work``; all get its result (pickled), or raise the error that it met.

    A failure that is no ``P2DError`` and no ``OSError`` is raised on the main process alone.
    """
    if count() == 1 or _main_alone:
        return work()
    join()
    outcome: list[tuple[Result | None, Exception | None]] = [(None, None)]
    if is_main():
        try:
            result = _alone(work)
        except (P2DError, OSError) as error:
            _broadcast([(None, error)])
            raise
        _broadcast([(result, None)])
        return result
    _broadcast(outcome)
    received, failure = outcome[0]
    if failure is not None:
        raise failure
    return received  # type: ignore[return-value]


def gathered(value: Result) -> list[Result]:
    """The values of all processes, in their order. They are pickled."""
    if count() == 1 or _main_alone:
        return [value]
    join()
    from torch import distributed

    values: list[Result] = [value] * count()
    distributed.all_gather_object(values, value)
    return values


def leave() -> None:
    """Wait until all have come to the end, and part."""
    if count() == 1:
        return
    from accelerate.state import PartialState

    if PartialState._shared_state:
        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()


def _check_devices() -> None:
    import torch

    if without_accelerator():
        return
    here, devices = _from_environment(_SIZES_HERE, otherwise=1), torch.accelerator.device_count()
    if here > devices:
        raise EngineError(
            f"{here} processes were started on a machine with {devices} GPU{'s' if devices > 1 else ''}",
            hint=f"start {devices}, or set ACCELERATE_USE_CPU=1 to train on the CPU",
        )


def _alone(work: Callable[[], Result]) -> Result:
    global _main_alone
    _main_alone = True
    try:
        return work()
    finally:
        _main_alone = False


def _broadcast(objects: list[tuple[Result | None, Exception | None]]) -> None:
    from torch import distributed

    distributed.broadcast_object_list(objects, src=0)


def _from_environment(names: tuple[str, ...], *, otherwise: int) -> int:
    for name in names:
        text = os.environ.get(name, "")
        if text.isdecimal():
            return int(text)
    return otherwise
