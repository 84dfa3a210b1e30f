"""How long each layer of a TensorRT engine takes, by the library's own profiler. For finding what is slow, not for
comparing: the layers are timed one by one, without a CUDA graph.
"""

from typing import Any

from prune2deploy.engines.tensorrt.run import TensorRTRun
from prune2deploy.errors import InputError


def profile_layers(run: TensorRTRun, iterations: int = 50) -> list[tuple[str, float]]:
    """Mean milliseconds of each layer over ``iterations`` runs of what is bound, in the order in which they ran.

    Raises:
        InputError: nothing is bound, or ``iterations`` is not positive.
        EngineError: the engine could not be run.
    """
    if iterations < 1:
        raise InputError(f"the number of iterations is positive, not {iterations}", where="profile_layers")
    totals: dict[str, float] = {}
    run.run_profiled(_profiler(run.library, totals), iterations)
    return [(layer, total / iterations) for layer, total in totals.items()]


def _profiler(library: Any, totals: dict[str, float]) -> Any:
    class SummingProfiler(library.IProfiler):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            library.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    return SummingProfiler()
