"""Verdicts as JUnit XML test cases, so that a CI system shows them without knowing of p2d.

There is no standard; this keeps to what the xUnit plugin of Jenkins checks files against (its junit-10.xsd).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from prune2deploy import __version__
from prune2deploy.bench.across.changes import Change, Outcome
from prune2deploy.bench.claims.verdicts import JudgedClaim, Verdict
from prune2deploy.bench.result import BenchResult, Control
from prune2deploy.report.across_tables import change_in_words, comparison_of
from prune2deploy.report.claim_words import promise
from prune2deploy.report.content import ReportContent
from prune2deploy.report.figures import spell_number
from prune2deploy.report.verdict import claim_in_words

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENVIRONMENT = ("machine_class", "cpu", "gpu", "threads", "cpus_pinned", "frequency_governor", "os", "python")
_PROTOCOL = ("scenario", "builds", "half_width", "half_width_reached", "confidence", "seed")
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One test case. ``outcome`` is None where it passed; ``kind`` is the verdict that failed it."""

    classname: str
    name: str
    outcome: Literal["failure", "error", "skipped"] | None
    kind: str = ""
    message: str = ""


def junit_report(content: ReportContent) -> str:
    """One test case for each claim, of whatever kind, each comparison with a baseline, and each A/A control.

    REFUTED and UNDECIDED claims fail, as does a speed-up that shrank; what is INVALID is an error. What nobody asked
    for never fails: a claim that is only implied is skipped unless it is CONFIRMED, with its verdict as the message,
    and so is a control that failed while nothing rests on it.
    """
    cases = [] if content.result is None else list(_cases(content.result, content))
    counts = {name: sum(case.outcome == outcome for case in cases) for name, outcome in _COUNTED.items()}
    totals = {"tests": str(len(cases)), **{name: str(count) for name, count in counts.items()}}
    suite = ElementTree.Element("testsuite", {"name": "p2d bench", **totals})
    if content.result is not None:
        _add_properties(suite, content.result)
    for case in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=_clean(case.classname), name=_clean(case.name))
        if case.outcome is not None:
            detail = ElementTree.SubElement(element, case.outcome, message=_clean(case.message))
            if case.outcome != "skipped":
                detail.set("type", case.kind)
    # The schema knows no count of skipped cases here.
    suites = ElementTree.Element("testsuites", {name: count for name, count in totals.items() if name != "skipped"})
    suites.append(suite)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'


def _cases(result: BenchResult, content: ReportContent) -> Iterator[_Case]:
    comparison = comparison_of(result)
    for claim in result.claims:
        yield _Case(
            classname=f"{claim.engine}.{claim.precision}",
            name=_name(claim),
            outcome=_outcome(claim),
            kind=claim.verdict.value,
            message=claim_in_words(claim, content),
        )
    if comparison is not None:
        yield from (_case_of_change(change, comparison.tolerance) for change in comparison.changes)
    asked = comparison is not None or any(claim.asked for claim in result.claims)
    for control in result.controls:
        yield _case_of_control(control, result.baseline, asked=asked)


def _outcome(claim: JudgedClaim) -> Literal["failure", "error", "skipped"] | None:
    if claim.verdict is Verdict.CONFIRMED:
        return None
    if not claim.asked:
        return "skipped"
    return "error" if claim.verdict is Verdict.INVALID else "failure"


def _name(claim: JudgedClaim) -> str:
    batch = "" if claim.batch is None else f" at batch {claim.batch}"
    return f"{claim.name}: {promise(claim)}{batch}" if claim.name else f"{promise(claim)}{batch}"


def _case_of_change(change: Change, tolerance: float) -> _Case:
    """A row against its baseline: as with the exit code, only a speed-up that surely shrank fails."""
    outcomes: dict[Outcome, Literal["failure", "error", "skipped"]] = {
        Outcome.SLOWER: "failure",
        Outcome.INVALID: "error",
        Outcome.UNDECIDED: "skipped",
    }
    return _Case(
        classname=f"{change.engine}.{change.precision}",
        name=f"{change.variant} keeps its speed-up against the baseline's at batch {change.batch}",
        outcome=outcomes.get(change.outcome),
        kind=change.outcome.value,
        message=change_in_words(change, tolerance),
    )


def _case_of_control(control: Control, baseline: str, *, asked: bool) -> _Case:
    outcome: Literal["error", "skipped"] | None = None
    message = ""
    if control.valid is None:
        outcome, message = "skipped", "too few builds were measured for an interval"
    elif not control.valid:
        outcome = "error" if asked else "skipped"
        message = control.disturbed or f"two copies of {baseline} differ by {abs(control.interval.estimate - 1):.1%}"
    return _Case(
        classname=f"{control.engine}.{control.precision}",
        name=f"A/A control: two copies of {baseline} are as fast as each other at batch {control.batch}",
        outcome=outcome,
        kind=Verdict.INVALID.value,
        message=message,
    )


def _add_properties(suite: ElementTree.Element, result: BenchResult) -> None:
    """What a reader of a CI system should know of the machine and of how it measured."""
    facts = {
        "p2d": __version__,
        **{name: result.environment.get(name) for name in _ENVIRONMENT},
        **{name: result.protocol.get(name) for name in _PROTOCOL},
        **{f"version.{name}": version for name, version in result.environment.get("versions", {}).items()},
    }
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in facts.items():
        if value is not None:
            ElementTree.SubElement(properties, "property", name=_clean(name), value=_clean(spell_number(value)))


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("�", text)
