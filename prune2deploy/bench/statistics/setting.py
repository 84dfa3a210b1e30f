"""What all builds measured at one precision and batch size: which of it counts, and the ratios that it gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from prune2deploy.bench.machine.disturbance import too_disturbed
from prune2deploy.bench.samples import BuildSamples, Cell
from prune2deploy.bench.statistics.figures import build_figure_ns
from prune2deploy.bench.statistics.intervals import Interval, ratio_interval
from prune2deploy.bench.subjects import MINIMUM_BUILDS_FOR_AN_INTERVAL, BenchOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The cells, one a build, of one precision and batch size.

    ``pilot`` is how many of them were the pilot's; None where no pilot decided how many builds there are.
    ``disturbed`` says why nothing can be concluded, and then every round counts, to be shown as it came; else None.
    """

    precision: str
    batch: int
    cells: tuple[Cell, ...]
    pilot: int | None
    disturbed: str | None
    scenario: str

    @classmethod
    def of(cls, builds: Sequence[BuildSamples], precision: str, batch: int, options: BenchOptions) -> "Setting":
        """Take what counts of all builds.

        Raises:
            InputError: a build lacks this cell.
        """
        cells = [build.cell(precision, batch) for build in builds]
        counting = [cell for cell in cells if cell.counts]
        disturbed = _reason(cells, counting)
        pilot = sum(cell.counts for cell in cells[: options.builds]) if options.half_width is not None else None
        if not counting:
            counting = [cell.with_disturbed_rounds() for cell in cells]
        return cls(
            precision=precision,
            batch=batch,
            cells=tuple(counting),
            pilot=pilot,
            disturbed=disturbed,
            scenario=options.scenario,
        )

    def figures(self, variant: str, *, copy: int = 0) -> tuple[float, ...]:
        """The figure of a variant in each build. Unit: ns. Shape: -> (builds,)."""
        return tuple(build_figure_ns(cell, variant, copy=copy, scenario=self.scenario) for cell in self.cells)

    def speedup(self, variant: str, against: str, *, confidence: float) -> Interval:
        """How many times as fast as ``against`` a variant is."""
        return ratio_interval(self.figures(against), self.figures(variant), confidence=confidence, pilot=self.pilot)


def _reason(cells: Sequence[Cell], counting: Sequence[Cell]) -> str | None:
    """Why too much was disturbed to conclude anything."""
    rounds, dropped = sum(cell.rounds for cell in cells), sum(len(cell.dropped) for cell in cells)
    if too_disturbed(rounds - dropped, dropped):
        return f"{dropped} of {rounds} rounds were disturbed"
    # With fewer builds than an interval needs the verdict is open for that reason alone, unless disturbance took them.
    if len(counting) < min(MINIMUM_BUILDS_FOR_AN_INTERVAL, len(cells)):
        return f"{len(cells) - len(counting)} of {len(cells)} builds were disturbed almost throughout"
    return None
