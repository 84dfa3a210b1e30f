"""The verdict in plain words: what a reader should know who reads nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass

from prune2deploy.bench.across.changes import Change, Outcome
from prune2deploy.bench.claims.kinds import SPEEDUP
from prune2deploy.bench.claims.verdicts import JudgedClaim, Verdict
from prune2deploy.bench.result import Row
from prune2deploy.bench.statistics.intervals import Interval
from prune2deploy.bench.subjects import DENSE, PRUNED, REDUCED
from prune2deploy.report.across_tables import comparison_of
from prune2deploy.report.claim_words import claim_label, finding, reason, spell_bound
from prune2deploy.report.content import ReportContent, Setting, spell_setting
from prune2deploy.report.figures import (
    NOTHING,
    spell_interval,
    spell_latency,
    spell_percent,
    spell_points,
    spell_ratio,
)
from prune2deploy.report.judged import judged_in_words, judged_ns, scenario_of
from prune2deploy.report.latency_words import latency_headline, latency_sentences

_OUR_VARIANTS = frozenset({DENSE, PRUNED, REDUCED})
_SEVERITY = (Verdict.INVALID, Verdict.REFUTED, Verdict.UNDECIDED, Verdict.CONFIRMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One large figure with what it means and a word on how sure it is."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """``verdict`` is the gravest of the claims, None without any, and ``badge`` says what it is about.

    ``headline`` is one sentence, ``sentences`` the rest.
    """

    verdict: Verdict | None
    badge: str
    headline: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]


def summary_of(content: ReportContent) -> Summary:
    """Say what came out, and how sure it is."""
    claims = content.result.claims if content.result is not None else ()
    verdict = next((severe for severe in _SEVERITY if severe in {claim.verdict for claim in claims}), None)
    return Summary(
        verdict=verdict,
        badge=_badge(verdict, claims),
        headline=_headline(content),
        sentences=tuple(_sentences(content, claims)),
        tiles=tuple(_tiles(content)),
    )


def claim_in_words(claim: JudgedClaim, content: ReportContent) -> str:
    """One claim, its verdict and why."""
    promised = (
        f"the claim of {spell_bound(claim)}" if claim.asked else f"the {spell_ratio(claim.claim)} its FLOPs imply"
    )
    setting = spell_setting((claim.engine, claim.precision, claim.batch), content)
    found = f"At {setting}, {finding(claim)}" if setting else _capital(finding(claim))
    named = f"“{claim.name}”: " if claim.name else ""
    return f"{named}{found}; {promised} is {claim.verdict.value}: {reason(claim)}."


def _badge(verdict: Verdict | None, claims: tuple[JudgedClaim, ...]) -> str:
    if verdict is None:
        return ""
    graves = [claim for claim in claims if claim.verdict is verdict]
    figures = {(claim.kind, claim.claim) for claim in graves}
    if len(figures) > 1:
        return f"claims: {verdict.value}"
    figure = (
        spell_ratio(graves[0].claim)
        if graves[0].kind == SPEEDUP
        else f"{claim_label(graves[0])} {spell_bound(graves[0])}"
    )
    return f"{figure} {'claimed' if graves[0].asked else 'implied by FLOPs'}: {verdict.value}"


def _headline(content: ReportContent) -> str:
    result = content.result
    if result is None:
        return latency_headline(content) or "Nothing has been measured yet"
    baseline = _called(result.baseline)
    found = _first_speedup(content)
    if found is None:
        return _capital(f"{baseline} was measured, with nothing to compare it with")
    (engine, _, _), interval = found
    subject, where = _called(content.subject), f"on {engine} at {spell_setting(found[0], content)}"
    invalid = content.invalid_because(found[0])
    if invalid is not None:
        return f"Nothing can be said of {subject} {where}: {invalid}"
    if interval.low is None or interval.high is None:
        return _capital(f"{subject} runs at about {spell_ratio(interval.estimate)} the speed of {baseline} {where}")
    if interval.low > 1:
        return _capital(f"{subject} is {spell_ratio(interval.estimate)} as fast as {baseline} {where}")
    if interval.high < 1:
        return _capital(f"{subject} is slower than {baseline}: {spell_ratio(interval.estimate)} its speed {where}")
    return f"No difference in speed between {subject} and {baseline} can be shown {where}"


def _called(variant: str) -> str:
    """``the pruned model`` for our own variants; a file's name as it stands."""
    return f"the {variant} model" if variant in _OUR_VARIANTS else variant


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence


def _sentences(content: ReportContent, claims: tuple[JudgedClaim, ...]) -> Iterator[str]:
    if content.result is None:
        source = "pruning and training" if content.latency_targets else "training"
        yield f"The variants wait for “p2d bench”; the figures below come from {source} alone."
    for claim in claims:
        yield claim_in_words(claim, content)
    yield from _against_earlier(content)
    yield from _against_reduced(content)
    yield from latency_sentences(content)
    dense, subject = _baseline_accuracy(content), content.accuracy_of(content.subject)
    if dense is not None and subject is not None and content.subject != content.baseline:
        yield (
            f"Top-1 accuracy is {spell_percent(subject)} against {spell_percent(dense)} for {content.baseline} "
            f"({spell_points(subject - dense)})."
        )
    elif subject is not None and content.dense is not None and dense is None:
        yield f"Top-1 accuracy is {spell_percent(subject)}; {content.baseline} is untrained, and there to be timed."
    elif content.manifest is None and subject is None:
        yield "Files were measured by themselves: without their run nothing says what they should compute."
    elif content.manifest is not None and content.manifest.data is None:
        yield "There was no data, so no accuracy is known."


def _against_earlier(content: ReportContent) -> Iterator[str]:
    """The comparison with an earlier measurement: what changed, or that nothing did."""
    comparison = None if content.result is None else comparison_of(content.result)
    if comparison is None:
        return
    told = [change for change in comparison.changes if change.outcome is not Outcome.SAME]
    yield from (_change_in_words(change, content) for change in told)
    if comparison.changes and not told:
        yield f"Since the earlier measurement no speed-up changed by more than {comparison.tolerance:.1%}."


def _change_in_words(change: Change, content: ReportContent) -> str:
    setting = spell_setting((change.engine, change.precision, change.batch), content)
    subject = f"the speed-up of {change.variant} at {setting}"
    if change.outcome is Outcome.INVALID:
        return f"Whether {subject} changed since the earlier measurement is INVALID: one of the two proves nothing."
    if change.outcome is Outcome.UNDECIDED:
        return f"Whether {subject} changed since the earlier measurement cannot be told."
    return (
        f"T{subject[1:]} {'grew' if change.outcome is Outcome.FASTER else 'shrank'} since the earlier "
        f"measurement, from {spell_ratio(change.before)} to {spell_ratio(change.after)}."
    )


def _against_reduced(content: ReportContent) -> Iterator[str]:
    """The comparison that pruning must stand: with the same architecture made plainly narrower."""
    if content.subject == REDUCED:
        return
    for setting in content.settings:
        if content.invalid_because(setting) is not None:
            continue
        for row in content.rows_at(setting):
            interval = row.speedup_against(REDUCED)
            if row.variant != content.subject or interval is None or interval.low is None or interval.high is None:
                continue
            where = f"At {spell_setting(setting, content)}, {row.variant}"
            measured = f"{spell_ratio(interval.estimate)}, {spell_interval(interval.low, interval.high)}"
            if interval.low > 1:
                yield f"{where} is faster than the plainly narrower network ({measured})."
            elif interval.high < 1:
                yield f"{where} is slower than the plainly narrower network ({measured})."
            else:
                yield f"{where} is as fast as the plainly narrower network, as far as can be told ({measured})."


def _tiles(content: ReportContent) -> Iterator[Tile]:
    found = _first_speedup(content)
    if found is not None and content.result is not None:
        setting, interval = found
        ends = spell_interval(interval.low, interval.high)
        sure = (
            "no interval" if interval.low is None else f"{ends} at {interval.confidence:.0%}, {interval.builds} builds"
        )
        yield Tile(
            label=f"speed-up, {spell_setting(setting, content)}",
            value=spell_ratio(interval.estimate),
            detail="INVALID" if content.invalid_because(setting) is not None else sure,
        )
        row = next(row for row in content.rows_at(setting) if row.variant == content.subject)
        yield Tile(
            label=judged_in_words(scenario_of(content.result)),
            value=_spell_judged(content, row),
            detail=f"{content.baseline}: {_baseline_latency(content, setting)}",
        )
    fraction = content.flops_fraction_of(content.subject)
    if fraction is not None:
        parameters = spell_percent(content.parameters_fraction_of(content.subject))
        yield Tile(label="FLOPs kept", value=spell_percent(fraction), detail=f"parameters kept: {parameters}")
    accuracy, dense = content.accuracy_of(content.subject), _baseline_accuracy(content)
    if accuracy is not None:
        detail = "" if dense is None else f"{spell_points(accuracy - dense)} against {content.baseline}"
        yield Tile(label="accuracy", value=spell_percent(accuracy), detail=detail)


def _first_speedup(content: ReportContent) -> tuple[Setting, Interval] | None:
    for setting in content.settings:
        for row in content.rows_at(setting):
            interval = row.speedup_against(content.baseline)
            if row.variant == content.subject and interval is not None:
                return setting, interval
    return None


def _baseline_accuracy(content: ReportContent) -> float | None:
    return content.accuracy_of(content.baseline)


def _baseline_latency(content: ReportContent, setting: Setting) -> str:
    rows = [row for row in content.rows_at(setting) if row.variant == content.baseline]
    return _spell_judged(content, rows[0]) if rows else NOTHING


def _spell_judged(content: ReportContent, row: Row) -> str:
    return spell_latency(judged_ns(row, scenario_of(content.result)))
