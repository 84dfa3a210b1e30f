"""``p2d compare``, and the gate of ``p2d bench --baseline``: two measurements of one machine class."""

from dataclasses import dataclass, replace
from pathlib import Path

from prune2deploy.bench.across.changes import Comparison, compare_results, failed_settings
from prune2deploy.bench.across.comparable import Conditions, require_comparable
from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.bench.result import RESULT_FILE, BenchResult, read_result
from prune2deploy.bench.subjects import BenchRequest as Measurement
from prune2deploy.errors import InputError
from prune2deploy.pipeline.outcomes import CompareOutcome
from prune2deploy.pipeline.requests import CompareRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.across_tables import across_tables, changes_in_words

_SCHEMA_VERSION = 1
_EXIT_CODES_OF_COMPARE = (12,)


def run_compare(request: CompareRequest, progress: Progress = SILENT) -> CompareOutcome:
    """Compare two results, each a document, a folder that holds one, or a run folder.

    The exit code is 12 where a control failed, else 0: whether a change is welcome is not for this command to say.

    Raises:
        InputError: one is missing or damaged, or they are not of one machine class or not measured alike.
    """
    files = result_file(request.before), result_file(request.after)
    comparison = compare_results(
        read_result(files[0]),
        read_result(files[1]),
        tolerance=request.tolerance,
        where=f"{request.before} and {request.after}",
    )
    code = comparison.exit_code
    return CompareOutcome(
        document={
            "schema_version": _SCHEMA_VERSION,
            "before": str(files[0]),
            "after": str(files[1]),
            **comparison.to_document(),
        },
        exit_code=code if code in _EXIT_CODES_OF_COMPARE else 0,
        tables=across_tables(comparison, title="Before and after"),
        sentences=changes_in_words(comparison),
    )


def result_file(path: Path, *, where: str | None = None) -> Path:
    """The result document that a path means: itself, that of a folder, or that of a run folder's measurement.

    Raises:
        InputError: there is none.
    """
    candidates = (path / RESULT_FILE, path / "bench" / RESULT_FILE) if path.is_dir() else (path,)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        what = f"holds no {RESULT_FILE}" if path.is_dir() else "does not exist"
        raise InputError(
            what, where=where or str(path), hint="name a result of `p2d bench`, its folder, or a run that was measured"
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """An earlier result that a new one is to be compared with. ``option`` is how the user named it."""

    file: Path
    result: BenchResult
    option: str

    def require_fit(self, measurement: Measurement) -> None:
        """Refuse what could not be compared, before it is measured, so that nobody waits for a refusal.

        Raises:
            InputError: the baseline is INVALID itself, or of another machine class, or nothing that will be measured.
        """
        environment = describe_environment(threads=measurement.options.threads, cpus=None)
        planned = Conditions.planned(measurement, environment)
        require_comparable(Conditions.of(self.result), planned, where=self.option)
        settings = {key[1:] for key in planned.keys}
        for engine, precision, batch in sorted(failed_settings(self.result) & settings):
            raise InputError(
                f"its own measurement is INVALID on {engine} at {precision}, batch {batch}",
                where=self.option,
                hint="measure the baseline again on a quieter machine",
            )

    def compared_with(self, result: BenchResult, *, tolerance: float) -> tuple[BenchResult, Comparison]:
        """A new result with its comparison in it, and the comparison."""
        comparison = compare_results(self.result, result, tolerance=tolerance, where=self.option)
        document = {"file": str(self.file), **comparison.to_document()}
        return replace(result, baseline_comparison=document), comparison


def read_baseline(path: Path) -> Baseline:
    """The result that ``--baseline`` names.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = result_file(path, where=f"--baseline {path}")
    return Baseline(file=file, result=read_result(file), option=f"--baseline {path}")


def gravest(claims_code: int, baseline_code: int) -> int:
    """Of two exit codes the one that matters more: 12 (INVALID), 10 (REFUTED), 13 (slower), 11 (UNDECIDED), 0."""
    return next((code for code in (12, 10, 13, 11) if code in (claims_code, baseline_code)), 0)
