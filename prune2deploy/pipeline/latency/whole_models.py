"""Timing whole networks against the dense one: what a latency table cannot see, and what a target is held against."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.subjects import DENSE, PRUNED, BenchOptions, BenchRequest, Subject
from prune2deploy.export.onnx_from_model import ExportedFile, export_onnx
from prune2deploy.latency.setting import Setting
from prune2deploy.progress import SILENT, Progress

_BUILDS, _MOST_BUILDS = 3, 10
_ROUNDS = 8
_HALF_WIDTH = 0.01
"""Of the interval of a ratio: a third of what a target is met within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTiming:
    """A network and the dense one, timed in turn. Medians in ns of one run of the batch.

    ``ratio`` is the network's latency over the dense one's, with its interval (None where there is none).
    """

    dense_ns: float
    latency_ns: float
    ratio: float
    low: float | None
    high: float | None


class WholeModels:
    """Times networks of one architecture in one setting. Files lie in ``folder``, which the caller removes."""

    def __init__(
        self,
        dense: nn.Module,
        input_shape: tuple[int, ...],
        setting: Setting,
        folder: Path,
        *,
        progress: Progress = SILENT,
    ) -> None:
        self._dense = dense
        self._input_shape = input_shape
        self._setting = setting
        self._folder = folder
        self._progress = progress
        self._subject: Subject | None = None
        self._count = 0

    def time(self, model: nn.Module) -> WholeTiming:
        """Export ``model``, and time it and the dense one in turn, in three fresh processes or more where they differ.

        Raises:
            ModelError: it cannot be exported.
            EngineError: the engine does not run here, or not this network.
            StorageError: the files cannot be written.
        """
        if self._subject is None:
            self._subject = self._exported(self._dense, DENSE)
        self._count += 1
        subject = self._exported(model, PRUNED)
        request = BenchRequest(
            subjects=(self._subject, subject),
            engine=self._setting.engine,
            batches=(self._setting.batch,),
            options=BenchOptions(
                threads=self._setting.threads,
                builds=_BUILDS,
                rounds=_ROUNDS,
                half_width=_HALF_WIDTH,
                max_builds=_MOST_BUILDS,
            ),
        )
        result = run_bench(request, progress=self._progress)
        rows = {row.variant: row for row in result.rows}
        subject.onnx_path.unlink()
        speedup = next(one.interval for one in rows[PRUNED].speedups if one.against == DENSE)
        dense_ns, ratio = float(rows[DENSE].latency_ns.p50), 1 / speedup.estimate
        return WholeTiming(
            dense_ns=dense_ns,
            latency_ns=ratio * dense_ns,
            ratio=ratio,
            low=None if speedup.high is None else 1 / speedup.high,
            high=None if speedup.low is None else 1 / speedup.low,
        )

    def _exported(self, model: nn.Module, variant: str) -> Subject:
        path = self._folder / f"{variant}-{self._count}.onnx"
        file: ExportedFile = export_onnx(
            model,
            path,
            input_shape=self._input_shape,
            precision=self._setting.precision,
            progress=self._progress,
        )
        return Subject(variant=variant, precision=self._setting.precision, onnx_path=path, sha256=file.sha256)
