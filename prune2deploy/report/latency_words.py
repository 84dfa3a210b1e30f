"""What a latency target came to, in sentences: what was asked, measured and proven, and what FLOPs would choose."""

from collections.abc import Iterator, Mapping
from typing import Any

from prune2deploy.report.content import ReportContent
from prune2deploy.report.figures import NOTHING, spell_latency, spell_percent, spell_ratio

# A solver's gap below half of what one digit after the point of a percentage shows.
_CLOSED_GAP = 0.0005


def latency_headline(content: ReportContent) -> str | None:
    """What was found while planning, for a page before the benchmark; None without a latency target."""
    told = content.latency_targets
    if not told:
        return None
    variant, document = next(iter(told.items()))
    where = f"on {document['engine']}, as timed while planning"
    if len(told) > 1:
        return f"{len(told)} networks were cut to latencies {where}"
    return f"The {variant} model takes {spell_percent(document['ratio'])} of dense's latency {where}"


def latency_sentences(content: ReportContent) -> Iterator[str]:
    """Of one network what was asked, measured and proven, and what FLOPs would choose; of a family who met it."""
    told = content.latency_targets
    if len(told) > 1:
        yield _of_family(told)
        return
    for variant, document in told.items():
        yield _of_one(variant, document)
        yield _of_solver(variant, document)
        yield from _of_flops(document)


def spell_share(ratio: float | None) -> str:
    """A share of a latency, fine enough for a target that is met within 3%: ``0.497``."""
    return NOTHING if ratio is None else f"{ratio:.3f}"


def spell_shares(low: float | None, high: float | None) -> str:
    """An interval of shares: ``0.493 to 0.501``."""
    return NOTHING if low is None or high is None else f"{low:.3f} to {high:.3f}"


def spell_gain(latency_ns: float) -> str:
    """A latency that may be negative where a cut costs time: ``−12.0 µs``."""
    return f"−{spell_latency(-latency_ns)}" if latency_ns < 0 else spell_latency(latency_ns)


def spell_latency_setting(document: Mapping[str, Any]) -> str:
    """What the latencies hold for: ``ort-cpu, fp32, batch 1, 1 thread``."""
    threads = document.get("threads")
    spelled = f"{document['engine']}, {document['precision']}, batch {document['batch']}"
    return spelled if threads is None else f"{spelled}, {_counted(threads, 'thread')}"


def target_fraction(document: Mapping[str, Any]) -> float:
    """The share of the dense latency that was asked for, or that the time is which was asked for."""
    target = document["target"]
    fraction: float | None = target["fraction"]
    return target["ns"] / document["dense_ns"] if fraction is None else fraction


def is_sure(document: Mapping[str, Any]) -> bool:
    """Whether the whole interval of what was measured lies on the side of the target that the estimate is on."""
    low, high, target = document["low"], document["high"], target_fraction(document)
    if low is None or high is None:
        return False
    return bool(high <= target if document["met"] else low > target)


def spell_met(document: Mapping[str, Any]) -> str:
    """Whether the target was met: ``yes``, ``no``, or either by the estimate, where the interval does not say so."""
    return f"{'yes' if document['met'] else 'no'}{'' if is_sure(document) else ', by the estimate'}"


def spell_solver(solver: Mapping[str, Any]) -> str:
    """How good a plan is known to be: ``at most 0.8% more could be kept (time limit)``."""
    gap = solver["gap"]
    if solver["status"] is None:
        return f"{solver['ranking']} ranking, no solver"
    if gap is None:
        return f"{solver['status']}, no bound"
    if gap < _CLOSED_GAP:
        return "optimal"
    return f"at most {spell_percent(gap)} more could be kept ({solver['status']})"


def taken_round(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The round whose plan was taken: that with the measured latency nearest to the one that is told."""
    told: float = document["pruned_ns"]
    rounds: list[Mapping[str, Any]] = document["rounds"]
    return min(reversed(rounds), key=lambda one: abs(one["measured_ns"] - told))


def predicted_ns(document: Mapping[str, Any]) -> float:
    """What the corrected table says of the plan that was taken."""
    correction = document.get("correction") or {"offset_ns": 0.0, "scale": 1.0}
    predicted: float = correction["offset_ns"] + correction["scale"] * taken_round(document)["predicted_ns"]
    return predicted


def _of_one(variant: str, document: Mapping[str, Any]) -> str:
    rounds = len(document["rounds"])
    target = document["target"]
    interval = spell_shares(document["low"], document["high"])
    sure = "" if interval == NOTHING else f" ({interval})"
    doubt = "there is no interval" if interval == NOTHING else "its interval reaches across the target"
    return (
        f"Timed while it was planned, on {spell_latency_setting(document)}: {variant} takes "
        f"{spell_latency(document['pruned_ns'])}, {spell_share(document['ratio'])}{sure} of dense's "
        f"{spell_latency(document['dense_ns'])}. The target of {spell_share(target_fraction(document))} "
        f"({spell_latency(target['ns'])}) is {'met' if document['met'] else 'missed'} after "
        f"{_counted(rounds, 'measured plan')}{'' if is_sure(document) else f', by the estimate alone: {doubt}'}."
    )


def _of_solver(variant: str, document: Mapping[str, Any]) -> str:
    solver = taken_round(document)["solver"]
    kept = f"The plan of {variant} keeps {spell_percent(document['importance_kept'])} of the importance"
    if solver["gap"] is None:
        how = f"Its widths were ranked ({solver['ranking']})" if solver["status"] is None else "It was found greedily"
        return f"{kept}. {how}: how much more a better plan could keep is not known."
    ended = " when its time was up" if solver["status"] == "time limit" else ""
    more = "nothing" if solver["gap"] < _CLOSED_GAP else f"at most {spell_percent(solver['gap'])}"
    return (
        f"{kept}; {more} more could be kept within that time by other choices of the widths that the solver weighed, "
        f"as the latency table prices them: so much was proven{ended}."
    )


def _of_flops(document: Mapping[str, Any]) -> Iterator[str]:
    other = document.get("flop_optimal")
    if other is None:
        return
    own_ns = predicted_ns(document)
    yield (
        f"Chosen by FLOPs instead, a plan that keeps {spell_percent(other['importance_kept'])} of the importance would "
        f"take {spell_latency(other['predicted_ns'])} by the corrected table and this one takes "
        f"{spell_latency(own_ns)}: {spell_ratio(other['predicted_ns'] / own_ns)} as long."
    )


def _of_family(told: Mapping[str, Mapping[str, Any]]) -> str:
    missed = [
        f"{variant} ({spell_share(document['ratio'])})" for variant, document in told.items() if not document["met"]
    ]
    first = next(iter(told.values()))
    met = "all are met" if not missed else f"{len(told) - len(missed)} are met; missed: {', '.join(missed)}"
    return f"Of {len(told)} latency targets, timed while they were planned on {spell_latency_setting(first)}, {met}."


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
