"""Verdicts as JUnit XML test cases, so that a CI system shows them without knowing of p2d."""

import re
from xml.etree import ElementTree

from prune2deploy.bench.claims import JudgedClaim, Verdict
from prune2deploy.report.claim_words import promise
from prune2deploy.report.content import ReportContent
from prune2deploy.report.verdict import claim_in_words

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_report(content: ReportContent) -> str:
    """One test case a claim, whatever its kind: REFUTED and UNDECIDED fail, INVALID is an error.

    A claim that nobody asked for never fails: unless CONFIRMED it is skipped, with its verdict as the message.
    """
    claims = content.result.claims if content.result is not None else ()
    suite = ElementTree.Element("testsuite", name="p2d bench")
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for claim in claims:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_clean(f"{claim.engine}.{claim.precision}"), name=_clean(_name(claim))
        )
        outcome = _outcome(claim)
        if outcome is not None:
            counts[outcome] += 1
            detail = ElementTree.SubElement(case, outcome, message=_clean(claim_in_words(claim, content)))
            if outcome != "skipped":
                detail.set("type", claim.verdict.value)
    totals = {
        "tests": str(len(claims)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
    }
    for name, value in totals.items():
        suite.set(name, value)
    suites = ElementTree.Element("testsuites", totals)
    suites.append(suite)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suites, encoding="unicode")}\n'


def _outcome(claim: JudgedClaim) -> str | None:
    if claim.verdict is Verdict.CONFIRMED:
        return None
    if not claim.asked:
        return "skipped"
    return "error" if claim.verdict is Verdict.INVALID else "failure"


def _name(claim: JudgedClaim) -> str:
    batch = "" if claim.batch is None else f" at batch {claim.batch}"
    return f"{claim.name}: {promise(claim)}{batch}" if claim.name else f"{promise(claim)}{batch}"


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("�", text)
