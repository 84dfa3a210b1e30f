"""Tables of a latency target: what each group gave and gained, the rounds of correction, and the FLOP-optimal plan."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune2deploy.report.content import ReportContent
from prune2deploy.report.figures import NOTHING, spell_latency, spell_number, spell_percent, spell_ratio
from prune2deploy.report.latency_words import (
    predicted_ns,
    spell_gain,
    spell_latency_setting,
    spell_met,
    spell_share,
    spell_shares,
    spell_solver,
    taken_round,
    target_fraction,
)
from prune2deploy.report.table import Table

LISTED_GROUPS = 15
_WITH_BRANCH = "with its branch"
_GAINED = (
    "What this cut alone costs and gains, the others as they are: the share of the network's importance, and the time "
    "by the corrected table. Gains of neighbours overlap and do not sum up."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where tables stand: the beginning of their keys, the end of their titles."""

    prefix: str
    suffix: str


_ALONE = _Place(prefix="latency", suffix="")


def latency_tables(content: ReportContent) -> tuple[Table, ...]:
    """The overview of a family, then what is known of each network that was cut to a latency; none without a target."""
    told = content.latency_targets
    tables = [
        table
        for number, (variant, document) in enumerate(told.items())
        for table in _tables_of(
            document,
            content.flops_fraction_of(variant),
            _ALONE if len(told) == 1 else _Place(prefix=f"latency-member{number}", suffix=f", {variant}"),
        )
    ]
    return tuple(table for table in (family_table(content), *tables) if table.rows)


def _tables_of(document: Mapping[str, Any], flops_fraction: float | None, place: _Place) -> Iterator[Table]:
    groups = document.get("groups", ())
    yield target_table(document, place)
    yield groups_table(groups, place)
    yield branches_table(document.get("branches", ()), place)
    yield flops_table(document, flops_fraction, place)
    yield rounds_table(document["rounds"], place)
    if len(groups) > LISTED_GROUPS:
        yield every_group_table(groups, place)


def family_table(content: ReportContent) -> Table:
    """One row for each network of a family; empty where there is only one."""
    told = content.latency_targets
    rows = tuple(
        (
            variant,
            spell_share(target_fraction(document)),
            spell_latency(document["pruned_ns"]),
            spell_share(document["ratio"]),
            spell_shares(document["low"], document["high"]),
            spell_met(document),
            spell_percent(document["importance_kept"]),
            spell_percent(content.flops_fraction_of(variant)),
            spell_percent(content.accuracy_of(variant)),
            _spell_flop_optimal(document),
            spell_percent(taken_round(document)["solver"]["gap"]),
        )
        for variant, document in told.items()
    )
    columns = (
        *("variant", "target", "latency", "of dense", "interval", "met", "importance kept", "FLOPs kept", "accuracy"),
        *("FLOP-optimal", "gap"),
    )
    return Table(
        key="latency-family",
        title="Latency targets",
        columns=columns,
        rows=rows if len(told) > 1 else (),
        numeric=frozenset({1, 2, 3, 4, 6, 7, 8, 9, 10}),
        note=(
            "Timed while each was planned, beside dense; “p2d bench” times all of them in one run. FLOP-optimal: how "
            "much longer the plan of fewest FLOPs that keeps about as much importance would take by that table. Gap: "
            "how much more importance a plan of those widths could keep at most."
        ),
    )


def target_table(document: Mapping[str, Any], place: _Place = _ALONE) -> Table:
    """What was asked, what was measured, and what the prices rest on."""
    target, facts = document["target"], document.get("table") or {}
    correction, device = document.get("correction"), document.get("device")
    rows = [
        ("target", f"{spell_share(target_fraction(document))} of dense, {spell_latency(target['ns'])}"),
        ("engine", spell_latency_setting(document)),
        *([("device", str(device))] if device else []),
        ("dense", spell_latency(document["dense_ns"])),
        ("pruned", spell_latency(document["pruned_ns"])),
        ("of dense", f"{spell_share(document['ratio'])} ({spell_shares(document['low'], document['high'])})"),
        ("met", spell_met(document)),
        ("importance kept", spell_percent(document["importance_kept"])),
        ("proven", spell_solver(taken_round(document)["solver"])),
    ]
    if correction:
        rows.append(
            ("correction", f"{spell_gain(correction['offset_ns'])} and {correction['scale']:.3f} times the table's sum")
        )
    if facts:
        rows.append(
            (
                "latency table",
                _spell_points(facts) + f"; typical spread {spell_percent(facts['spread'])}",
            )
        )
    unpriced = document.get("unpriced") or {}
    if unpriced:
        rows.append(("operators without a price", ", ".join(f"{name} ×{count}" for name, count in unpriced.items())))
    return Table(
        key=f"{place.prefix}-target",
        title=f"Latency target{place.suffix}",
        columns=("what", "value"),
        rows=tuple(rows),
        note="What has no price, and what engines do between the layers, is in the correction." if unpriced else "",
    )


def groups_table(groups: Sequence[Mapping[str, Any]], place: _Place = _ALONE) -> Table:
    """The groups whose cuts gained most time, largest gain first."""
    ordered = sorted(groups, key=lambda group: -group["saved_ns"])
    shown = ordered[:LISTED_GROUPS]
    cut_off = f"The {len(shown)} of {len(groups)} groups that gain most. " if len(shown) < len(groups) else ""
    return _table_of_groups(
        shown,
        key=f"{place.prefix}-groups",
        title=f"Importance against time, by group{place.suffix}",
        note=cut_off + _GAINED,
    )


def every_group_table(groups: Sequence[Mapping[str, Any]], place: _Place = _ALONE) -> Table:
    """All groups, from input to output."""
    return _table_of_groups(
        groups, key=f"{place.prefix}-every", title=f"All groups of the latency target{place.suffix}"
    )


def branches_table(branches: Sequence[Mapping[str, Any]], place: _Place = _ALONE) -> Table:
    """The residual branches that left whole, largest gain first."""
    gone = sorted((branch for branch in branches if branch["removed"]), key=lambda branch: -branch["saved_ns"])
    unit, unit_ns = _unit_of_price(gone)
    return Table(
        key=f"{place.prefix}-branches",
        title=f"Residual branches that left whole{place.suffix}",
        columns=("branch", "importance lost", "gained", f"lost per {unit}"),
        rows=tuple((str(branch["name"]), *_spell_exchange(branch, unit_ns)) for branch in gone),
        numeric=frozenset({1, 2, 3}),
        note=f"{len(gone)} of {len(branches)} that could.",
    )


def flops_table(document: Mapping[str, Any], flops_fraction: float | None, place: _Place = _ALONE) -> Table:
    """This plan beside the one that FLOPs would have chosen at the same kept importance, both by the same table."""
    other, own_ns = document.get("flop_optimal"), predicted_ns(document)
    rows: tuple[tuple[str, ...], ...] = ()
    if other is not None:
        rows = (
            (
                "this plan",
                spell_latency(own_ns),
                spell_ratio(1.0),
                spell_percent(document["importance_kept"]),
                spell_percent(flops_fraction),
            ),
            (
                "FLOP-optimal",
                spell_latency(other["predicted_ns"]),
                spell_ratio(other["predicted_ns"] / own_ns),
                spell_percent(other["importance_kept"]),
                spell_percent(other["flops_fraction"]),
            ),
        )
    return Table(
        key=f"{place.prefix}-flops",
        title=f"What the FLOP-optimal plan would have cost{place.suffix}",
        columns=("plan", "predicted", "against this plan", "importance kept", "FLOPs kept"),
        rows=rows,
        numeric=frozenset({1, 2, 3, 4}),
        note="Fewest FLOPs at about the same kept importance, by the same corrected table; it was not timed.",
    )


def rounds_table(rounds: Sequence[Mapping[str, Any]], place: _Place = _ALONE) -> Table:
    """One row for each plan that was built and timed whole on the way to the target."""
    rows = tuple(
        (
            str(number),
            spell_latency(one["predicted_ns"]),
            spell_latency(one["measured_ns"]),
            spell_ratio(one["measured_ns"] / one["predicted_ns"]),
            spell_share(one["ratio"]),
            spell_shares(one["low"], one["high"]),
            spell_solver(one["solver"]),
            NOTHING if one["solver"]["seconds"] is None else f"{one['solver']['seconds']:.1f} s",
        )
        for number, one in enumerate(rounds, start=1)
    )
    columns = (*("round", "by the table", "measured", "measured/table", "of dense", "interval", "solver", "solved in"),)
    return Table(
        key=f"{place.prefix}-rounds",
        title=f"Rounds of correction{place.suffix}",
        columns=columns,
        rows=rows,
        numeric=frozenset({0, 1, 2, 3, 4, 5, 7}),
        note=(
            "Each round solves, times the whole network beside dense, and fits a line from the table's sums to what "
            "was measured, for the next to be solved by. Sums are shown as they are, without the line."
        ),
    )


def _spell_points(facts: Mapping[str, Any]) -> str:
    """Where the points of a latency table come from: ``412 points timed in 123.4 s, 88 reused``."""
    if facts["measured"] == 0:
        return f"{facts['reused']} points reused"
    return f"{facts['measured']} points timed in {spell_number(facts['seconds'])} s, {facts['reused']} reused"


def _table_of_groups(groups: Sequence[Mapping[str, Any]], *, key: str, title: str, note: str = "") -> Table:
    compared = any(group.get("flop_optimal") is not None for group in groups)
    columns = ("group", "dense", "kept", *(("FLOP-optimal",) if compared else ()))
    unit, unit_ns = _unit_of_price(groups)
    columns = (*columns, "importance lost", "gained", f"lost per {unit}")
    rows = tuple(
        (
            str(group["name"]),
            str(group["dense"]),
            str(group["kept"]),
            *((spell_number(group.get("flop_optimal")),) if compared else ()),
            *_spell_exchange(group, unit_ns),
        )
        for group in groups
    )
    return Table(key=key, title=title, columns=columns, rows=rows, numeric=frozenset(range(1, len(columns))), note=note)


def _unit_of_price(entries: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """The time that a price is told for, and what it is in ns: a millisecond, or a microsecond in a small network."""
    largest = max((entry["saved_ns"] for entry in entries), default=0.0)
    return ("ms", 1e6) if largest >= 1e5 else ("µs", 1e3)


def _spell_exchange(entry: Mapping[str, Any], unit_ns: float) -> tuple[str, str, str]:
    """Importance lost, time gained, and the price of a unit of time where time was gained."""
    lost, saved_ns = entry["importance_lost"], entry["saved_ns"]
    price = f"{100 * lost / (saved_ns / unit_ns):.3g}%" if saved_ns > 0 else NOTHING
    gained = _WITH_BRANCH if entry.get("kept") == 0 else spell_gain(saved_ns)
    return spell_percent(lost, digits=2), gained, price


def _spell_flop_optimal(document: Mapping[str, Any]) -> str:
    """How many times as long the FLOP-optimal plan would take, by the same table."""
    other = document.get("flop_optimal")
    return NOTHING if other is None else spell_ratio(other["predicted_ns"] / predicted_ns(document))
