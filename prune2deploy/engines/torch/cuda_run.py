"""A module on a GPU: its time there, copies to it, and more than one run at once."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prune2deploy.engines.engine import Array
from prune2deploy.engines.preconditions import checked_arrays
from prune2deploy.engines.torch.run import TorchRun
from prune2deploy.engines.torch.tensors import tensor_from_array

if TYPE_CHECKING:
    import torch


class CudaTorchRun(TorchRun):
    """A module on a GPU, which has a clock and a memory of its own and takes several runs at once."""

    _given: Sequence["torch.Tensor"] = ()

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """As ``TorchRun.bind``; the arrays are kept for ``time_copies``."""
        super().bind(arrays)
        self._given = [tensor_from_array(array) for array in checked_arrays(self.inputs, arrays, self._file.path)]

    def run(self) -> None:
        """Run once over what is bound, and wait for the GPU."""
        import torch

        self._launch()
        torch.cuda.synchronize()

    def time_on_device(self, runs: int) -> list[int]:
        """Run ``runs`` times what is bound, each timed by CUDA events around it. Unit: ns. Shape: -> (runs,).

        One untimed run goes first, behind which the host can get ahead. In eager mode it often cannot, and the time
        holds the GPU's waits for the next kernel.
        """
        import torch

        event: Any = torch.cuda.Event
        moments = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(runs)]
        self._launch()
        for before, after in moments:
            before.record()
            self._launch()
            after.record()
        torch.cuda.synchronize()
        return [round(before.elapsed_time(after) * 1e6) for before, after in moments]

    def time_copies(self, copies: int) -> list[int]:
        """Copy the bound inputs to the GPU ``copies`` times, as ``bind`` does: from pageable memory, waiting for each.

        Unit: ns of wall-clock time each. Shape: -> (copies,).
        """
        import torch

        samples = []
        with torch.inference_mode():
            for _ in range(copies):
                begun = time.perf_counter_ns()
                for place, tensor in zip(self._bound, self._given, strict=True):
                    place.copy_(tensor)
                torch.cuda.synchronize()
                samples.append(time.perf_counter_ns() - begun)
        return samples

    def queue_depth(self) -> int:
        """Two: one run that the GPU works on, and the next one waiting on its stream."""
        return 2

    def run_queued(self, runs: int) -> None:
        """Launch ``runs`` runs without waiting, on one stream, then wait for the last."""
        import torch

        for _ in range(runs):
            self._launch()
        torch.cuda.synchronize()
