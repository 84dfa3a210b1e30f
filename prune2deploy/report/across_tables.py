"""Two measurements side by side: tables and sentences of a comparison."""

from collections.abc import Iterator

from prune2deploy.bench.across.changes import Change, Comparison, Outcome
from prune2deploy.bench.across.comparable import Key
from prune2deploy.bench.result import BenchResult
from prune2deploy.report.figures import NOTHING, spell_latency, spell_ratio
from prune2deploy.report.table import Table

_FILES = {True: "same", False: "other"}


def comparison_of(result: BenchResult, *, where: str = "baseline_comparison") -> Comparison | None:
    """The comparison with a baseline that a result holds, None where there was none.

    Raises:
        InputError: it is damaged.
    """
    document = result.baseline_comparison
    return None if document is None else Comparison.from_document(document, where=where)


def across_tables(comparison: Comparison, *, title: str = "Against the baseline") -> tuple[Table, ...]:
    """The changes of the speed-ups, the latencies of the bases, and what else differs; empty ones left out."""
    made = (changes_table(comparison, title=title), _latencies_table(comparison), _differences_table(comparison))
    return tuple(table for table in made if table.rows)


def baseline_tables(result: BenchResult) -> tuple[Table, ...]:
    """The tables of a result that was compared with a baseline, none where it was not."""
    comparison = comparison_of(result)
    return () if comparison is None else across_tables(comparison)


def changes_table(comparison: Comparison, *, title: str = "Against the baseline") -> Table:
    """One row for each speed-up that both measurements have."""
    rows = tuple(
        (
            change.variant,
            change.engine,
            change.precision,
            str(change.batch),
            _FILES[change.same_file],
            spell_ratio(change.before),
            spell_ratio(change.after),
            _finely(change.estimate),
            NOTHING if change.low is None else f"{_finely(change.low)} to {_finely(change.high)}",
            change.outcome.value,
        )
        for change in comparison.changes
    )
    return Table(
        key="across",
        title=title,
        columns=("variant", "engine", "precision", "batch", "file", "before", "after", "change", "interval", "outcome"),
        rows=rows,
        numeric=frozenset({3, 5, 6, 7, 8}),
        note=(
            "‘Before’ and ‘after’ are speed-ups against the base of the same measurement; the change is after over "
            "before, below 1 where it became slower. ‘Same’ is within "
            f"{comparison.tolerance:.1%} with the whole interval."
        ),
    )


def changes_in_words(comparison: Comparison) -> tuple[str, ...]:
    """One sentence for each change, then what the other measurement lacks."""
    return (*(change_in_words(change, comparison.tolerance) for change in comparison.changes), *_unmatched(comparison))


def change_in_words(change: Change, tolerance: float) -> str:
    """One change and what it means."""
    where = f"{change.variant} on {change.engine} at {change.precision}, batch {change.batch}"
    measured = f"{spell_ratio(change.before)} before, {spell_ratio(change.after)} after"
    if change.low is not None:
        measured += f", change {_finely(change.estimate)} ({_finely(change.low)} to {_finely(change.high)})"
    meaning = {
        Outcome.FASTER: "its speed-up grew",
        Outcome.SLOWER: "its speed-up shrank",
        Outcome.SAME: f"its speed-up is the same within {tolerance:.1%}",
        Outcome.UNDECIDED: (
            "fewer than three builds decide nothing"
            if change.low is None
            else "whether its speed-up changed cannot be told"
        ),
        Outcome.INVALID: "one of the two measurements was disturbed, or its control failed, so nothing can be said",
    }[change.outcome]
    return f"{change.outcome.value}: {where}: {meaning} ({measured})"


def _unmatched(comparison: Comparison) -> Iterator[str]:
    for keys, side in ((comparison.only_before, "before"), (comparison.only_after, "after")):
        if keys:
            yield f"measured only {side}: {'; '.join(_spelled(key) for key in keys)}"


def _latencies_table(comparison: Comparison) -> Table:
    rows = tuple(
        (
            one.variant,
            one.engine,
            one.precision,
            str(one.batch),
            _FILES[one.same_file],
            spell_latency(one.before_ns),
            spell_latency(one.after_ns),
        )
        for one in comparison.baselines
    )
    return Table(
        key="across-baselines",
        title="Latency of the base",
        columns=("variant", "engine", "precision", "batch", "file", "before", "after"),
        rows=rows,
        numeric=frozenset({3, 5, 6}),
        note=(
            "For orientation, and not judged: the two measurements may have met a different temperature, clock "
            "or neighbour."
        ),
    )


def _differences_table(comparison: Comparison) -> Table:
    rows = tuple((name, old, new) for name, (old, new) in comparison.differences.items())
    return Table(key="across-differences", title="What else differs", columns=("what", "before", "after"), rows=rows)


def _spelled(key: Key) -> str:
    variant, engine, precision, batch = key
    return f"{variant} on {engine} at {precision}, batch {batch}"


def _finely(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio:.3f}"
