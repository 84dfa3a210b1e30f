"""Claims of every kind in a terminal line, a sentence of the report, a table and a JUnit case."""

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from prune2deploy.bench.claims.kinds import KINDS
from prune2deploy.bench.claims.verdicts import JudgedClaim, Verdict, reason_for
from prune2deploy.report.claim_words import spell_bound, verdict_line
from prune2deploy.report.content import ReportContent
from prune2deploy.report.junit import junit_report
from prune2deploy.report.measured_tables import claims_table
from prune2deploy.report.verdict import claim_in_words, summary_of

FIGURES = {
    "speedup": (2.0, 2.5, 2.4, 2.6),
    "latency_ms": (4.0, 3.2, 3.1, 3.3),
    "throughput_per_s": (1200, 1500, 1400, 1600),
    "yield": (0.8, 0.9, 0.85, 0.95),
    "accuracy": (0.97, 0.986, 0.972, 0.994),
    "accuracy_drop_points": (2.0, 0.5, -0.6, 1.7),
    "size_mb": (5.0, 3.6, 3.6, 3.6),
    "size_fraction": (0.4, 0.35, 0.35, 0.35),
    "memory_mb": (120, 80.5, 79.1, 81.9),
    "energy_mj": (15, 12.0, 11.5, 12.5),
}
WORDS = {
    "speedup": ("pruned reaches at least 2.00× the speed of dense", "2.50×", "2.40 to 2.60"),
    "latency_ms": ("pruned takes at most 4.00 ms at the 90th percentile", "3.20 ms", "3.10 ms to 3.30 ms"),
    "throughput_per_s": ("pruned takes in at least 1.20 k inputs/s", "1.50 k inputs/s", "1.40 k to 1.60 k"),
    "yield": ("pruned has a yield of at least 0.80", "0.90", "0.85 to 0.95"),
    "accuracy": ("pruned has an accuracy of at least 97.0%", "98.6%", "97.2% to 99.4%"),
    "accuracy_drop_points": (
        "pruned loses at most 2.0 points of accuracy against dense", "0.5 points", "−0.6 to 1.7",
    ),
    "size_mb": ("the file of pruned takes at most 5.00 MB", "3.60 MB", None),
    "size_fraction": ("the file of pruned takes at most 40.0% of the size of dense", "35.0%", None),
    "memory_mb": ("pruned takes at most 120 MB of memory", "80.5 MB", "79.1 MB to 81.9 MB"),
    "energy_mj": ("pruned takes at most 15.0 mJ an input", "12.0 mJ", "11.5 mJ to 12.5 mJ"),
}  # fmt: skip


def confirmed(key: str, **changes: Any) -> JudgedClaim:
    kind = KINDS[key]
    bound, estimate, low, high = FIGURES[key]
    claim = JudgedClaim(
        claim=bound,
        variant="pruned",
        engine="ort-cpu",
        precision="fp32",
        batch=1 if kind.of_batch else None,
        verdict=Verdict.CONFIRMED,
        against="dense" if kind.relative else None,
        asked=True,
        estimate=estimate,
        low=low,
        high=high,
        kind=key,
        unit=kind.unit,
        at_least=kind.at_least,
        percentile=90 if key == "latency_ms" else None,
        against_precision="fp32" if kind.relative else None,
        confidence=None if low == high else 0.95,
        reason=reason_for(Verdict.CONFIRMED, at_least=kind.at_least, exact=low == high),
    )
    return replace(claim, **changes)


def content_with(make_manifest: Any, make_result: Any, *claims: JudgedClaim) -> ReportContent:
    return ReportContent(manifest=make_manifest(), result=replace(make_result(), claims=claims))


@pytest.mark.parametrize("key", KINDS)
def test_a_line_says_what_was_claimed_and_what_was_measured(key: str) -> None:
    promised, measured, interval = WORDS[key]
    at = "at batch 1 " if KINDS[key].of_batch else ""
    ends = "" if interval is None else f", interval {interval}"
    assert verdict_line(confirmed(key)) == f"CONFIRMED: {promised} {at}on ort-cpu (claimed); measured {measured}{ends}"


def test_a_line_says_why_nothing_could_be_decided() -> None:
    unknown = confirmed(
        "accuracy", verdict=Verdict.UNDECIDED, estimate=None, low=None, high=None, reason="no accuracy was measured"
    )
    assert verdict_line(unknown).endswith("on ort-cpu (claimed); not measured: no accuracy was measured")
    invalid = confirmed("latency_ms", verdict=Verdict.INVALID, reason="9 of 12 rounds were disturbed", name="quick")
    assert verdict_line(invalid).startswith("INVALID: quick: pruned takes at most 4.00 ms")
    assert verdict_line(invalid).endswith("interval 3.10 ms to 3.30 ms: 9 of 12 rounds were disturbed")


def test_a_line_names_precisions_that_differ() -> None:
    line = verdict_line(confirmed("size_fraction", precision="int8", against_precision="fp32"))
    assert "of the size of dense at fp32 at int8 on ort-cpu" in line


@pytest.mark.parametrize("key", KINDS)
def test_the_report_says_each_claim_in_a_sentence_and_a_row(key: str, make_manifest: Any, make_result: Any) -> None:
    claim = confirmed(key, name="as promised")
    content = content_with(make_manifest, make_result, claim)
    promised, measured, interval = WORDS[key]
    sentence = claim_in_words(claim, content)
    assert sentence.startswith("“as promised”: ")
    assert measured in sentence
    assert f"the claim of {spell_bound(claim)} is CONFIRMED: {claim.reason}." in sentence
    assert spell_bound(claim) in promised
    assert sentence in summary_of(content).sentences
    assert content.result is not None
    (row,) = claims_table(content.result).rows
    assert row[-3:] == (measured, interval or "exact", "CONFIRMED")


def test_a_result_from_before_claims_had_kinds_still_says_why(make_manifest: Any, make_result: Any) -> None:
    old = confirmed("speedup", verdict=Verdict.REFUTED, reason="")
    assert claim_in_words(old, content_with(make_manifest, make_result, old)).endswith(
        "the whole interval lies below it."
    )
    few = confirmed("speedup", verdict=Verdict.UNDECIDED, low=None, high=None, reason="")
    assert "too few builds" in claim_in_words(few, content_with(make_manifest, make_result, few))


@pytest.mark.parametrize("key", KINDS)
@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.CONFIRMED, None),
        (Verdict.REFUTED, "failure"),
        (Verdict.UNDECIDED, "failure"),
        (Verdict.INVALID, "error"),
    ],
)
def test_junit_has_a_case_for_every_kind_with_its_reason(
    key: str, verdict: Verdict, outcome: str | None, make_manifest: Any, make_result: Any
) -> None:
    claim = confirmed(key, verdict=verdict, reason="of a reason that is told", name="as promised")
    suites = ElementTree.fromstring(junit_report(content_with(make_manifest, make_result, claim)))
    (case,) = [case for case in suites.iter("testcase") if "as promised" in str(case.get("name"))]
    assert WORDS[key][0] in str(case.get("name"))
    assert [child.tag for child in case] == ([] if outcome is None else [outcome])
    assert outcome is None or "of a reason that is told" in str(case[0].get("message"))


def test_the_badge_names_the_gravest_claim(make_manifest: Any, make_result: Any) -> None:
    refuted = confirmed("latency_ms", verdict=Verdict.REFUTED)
    summary = summary_of(content_with(make_manifest, make_result, confirmed("speedup"), refuted))
    assert summary.badge == "latency, p90 at most 4.00 ms claimed: REFUTED"
    both = summary_of(content_with(make_manifest, make_result, confirmed("size_mb", verdict=Verdict.REFUTED), refuted))
    assert both.badge == "claims: REFUTED"
