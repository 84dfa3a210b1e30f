"""Tables of where the time goes: the loss of each variant by cause, and its slowest layers beside those of dense."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prune2deploy.bench.aside.attribution import CAUSES_IN_WORDS, Attribution, attribution_of, in_words, leading_node
from prune2deploy.bench.aside.profile import Profile, ProfiledLayer
from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.report.figures import NOTHING, spell_latency, spell_percent, spell_ratio
from prune2deploy.report.table import Table

LISTED_LAYERS = 15
_LEAST_SHARE = 0.0005
_ONCE = "A minus is a gain. From one profile, taken in the first build beside the timed runs: no interval."


def profile_tables(result: BenchResult) -> tuple[Table, ...]:
    """The losses of each setting that was profiled, then the layers of each variant; none without profiles."""
    settings = tuple(dict.fromkeys((row.engine, row.precision, row.batch) for row in result.rows))
    grouped = [
        [row for row in result.rows if (row.engine, row.precision, row.batch) == setting and row.profile is not None]
        for setting in settings
    ]
    losses = (losses_table(rows, number) for number, rows in enumerate(grouped))
    layers = (
        layers_table(row, _base(rows, result.baseline, row), f"layers{number}-{place}")
        for number, rows in enumerate(grouped)
        for place, row in enumerate(rows)
        if row.variant != result.baseline or len(rows) == 1
    )
    return tuple(table for table in (*losses, *layers) if table.rows)


def losses_table(rows: Sequence[Row], number: int = 0) -> Table:
    """The time of each variant beyond its share of the FLOPs, by cause. ``rows`` are of one setting."""
    found = [(row, attribution) for row in rows if (attribution := attribution_of(row)) is not None]
    causes = [
        cause
        for cause in CAUSES_IN_WORDS
        if any(abs(attribution.losses.get(cause, 0)) >= _LEAST_SHARE for _, attribution in found)
    ]
    lines = (
        ("median", *(spell_latency(row.latency_ns.p50) for row, _ in found)),
        ("FLOPs kept", *(spell_percent(attribution.flops_fraction) for _, attribution in found)),
        ("yield", *(f"{attribution.flop_yield:.2f}" for _, attribution in found)),
        *(
            (
                f"lost to {CAUSES_IN_WORDS[cause]}",
                *(_spell_loss(attribution.losses.get(cause, 0), row) for row, attribution in found),
            )
            for cause in causes
        ),
    )
    return Table(
        key=f"where{number}",
        title=f"Where the speed went{_setting_of(rows)}",
        columns=("", *(row.variant for row, _ in found)),
        rows=lines if found else (),
        numeric=frozenset(range(1, len(found) + 1)),
        note=" ".join(_said(found)),
    )


def layers_table(row: Row, base: Row | None, key: str) -> Table:
    """The slowest layers of a variant, each beside the layer of the same node in dense.

    Times are shares of a profiled run, scaled to the median of the timed ones.
    """
    pairs = sorted(_side_by_side(row, base), key=lambda pair: -pair.slowest_ns)
    against = base.variant if base is not None else None
    columns = ("layer", "bound by", *(() if against is None else (against,)), row.variant)
    if against is not None:
        columns = (*columns, "speed-up", "FLOPs kept", "widths")
    shown = pairs[:LISTED_LAYERS]
    return Table(
        key=key,
        title=f"Slowest layers, {row.variant}{_setting_of([row])}",
        columns=columns,
        rows=tuple(_layer_row(pair, compared=against is not None) for pair in shown),
        numeric=frozenset(range(2, len(columns))),
        note=_of_all(shown, pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A layer of the variant and its counterpart in dense, with their times in ns; either may be missing."""

    own: ProfiledLayer | None
    own_ns: float | None
    base: ProfiledLayer | None
    base_ns: float | None

    @property
    def slowest_ns(self) -> float:
        """The longer of the two times."""
        return max(self.own_ns or 0.0, self.base_ns or 0.0)


def _side_by_side(row: Row, base: Row | None) -> Iterator[_Pair]:
    own, other = _timed(row), [] if base is None else _timed(base)
    waiting = {node: pair for pair in other if (node := leading_node(pair[0])) is not None}
    for layer, latency_ns in own:
        counterpart = waiting.pop(leading_node(layer) or "", None)
        yield _Pair(
            own=layer,
            own_ns=latency_ns,
            base=None if counterpart is None else counterpart[0],
            base_ns=None if counterpart is None else counterpart[1],
        )
    for layer, latency_ns in other:
        node = leading_node(layer)
        if node is None or node in waiting:
            yield _Pair(own=None, own_ns=None, base=layer, base_ns=latency_ns)


def _timed(row: Row) -> list[tuple[ProfiledLayer, float]]:
    if row.profile is None:
        return []
    profile = Profile.from_document(row.profile)
    return [(layer, share * row.latency_ns.p50) for layer, share in zip(profile.layers, profile.shares, strict=True)]


def _layer_row(pair: _Pair, *, compared: bool) -> tuple[str, ...]:
    layer = pair.own or pair.base
    assert layer is not None
    name = leading_node(layer) or layer.name
    if not compared:
        return name, layer.kind.value, spell_latency(pair.own_ns)
    ratio = pair.base_ns / pair.own_ns if pair.base_ns and pair.own_ns else None
    kept = pair.own.flops / pair.base.flops if pair.own and pair.base and pair.base.flops else None
    return (
        name,
        layer.kind.value,
        spell_latency(pair.base_ns),
        spell_latency(pair.own_ns),
        spell_ratio(ratio),
        spell_percent(kept),
        _widths(pair),
    )


def _widths(pair: _Pair) -> str:
    """Input and output width in dense, then in the variant: ``64×64 → 40×48``."""
    spelled = [
        f"{layer.products[0].input_width}×{layer.products[0].output_width}"
        for layer in (pair.base, pair.own)
        if layer is not None and layer.products
    ]
    return " → ".join(dict.fromkeys(spelled)) or NOTHING


def _of_all(shown: Sequence[_Pair], pairs: Sequence[_Pair]) -> str:
    if len(shown) == len(pairs):
        return "Shares of a profiled run, scaled to the median of the timed runs."
    own = sum(pair.own_ns or 0 for pair in pairs)
    share = sum(pair.own_ns or 0 for pair in shown) / own if own else 0.0
    return (
        f"{len(shown)} of the {len(pairs)} layers of both, {share:.0%} of the layers' time here; shares of a profiled "
        "run, scaled to the median of the timed runs."
    )


def _said(found: Sequence[tuple[Row, Attribution]]) -> Iterator[str]:
    for row, attribution in found:
        yield f"{row.variant}: {in_words(attribution)}."
    yield _ONCE
    profiles = [Profile.from_document(row.profile) for row, _ in found if row.profile is not None]
    notes = (note for _, attribution in found for note in attribution.notes)
    told = (sentence for profile in profiles for sentence in (profile.told_by, *profile.left_out))
    for sentence in dict.fromkeys((*notes, *told)):
        yield f"{sentence[0].upper()}{sentence[1:]}."


def _spell_loss(share: float, row: Row) -> str:
    """``12.3% (0.31 ms)``; what is gained has a minus."""
    sign = "−" if share <= -_LEAST_SHARE else ""
    return f"{sign}{spell_percent(abs(share))} ({sign}{spell_latency(abs(share) * row.latency_ns.p50)})"


def _base(rows: Sequence[Row], baseline: str, row: Row) -> Row | None:
    return next((other for other in rows if other.variant == baseline and other is not row), None)


def _setting_of(rows: Sequence[Row]) -> str:
    return f", {rows[0].engine}, {rows[0].precision}, batch {rows[0].batch}" if rows else ""
