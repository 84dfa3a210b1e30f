"""What CI systems read: the file keeps to the schema that Jenkins checks, and each verdict is a case."""

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from prune2deploy.bench.across.changes import Comparison, Outcome
from prune2deploy.report.content import ReportContent
from prune2deploy.report.junit import junit_report

# What junit-10.xsd of Jenkins' xUnit plugin allows: children, required attributes, other attributes.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": (
        {"properties", "testcase", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {"time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url", "group"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name"},
        {"time", "classname", "group"},
    ),
    **{name: (set(), set(), {"type", "message"}) for name in ("skipped", "error", "failure")},
}
COUNTED = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def read(content: ReportContent) -> ElementTree.Element:
    """The file as a CI system reads it, after checking it against the schema and its counts against its cases."""
    suites = ElementTree.fromstring(junit_report(content))
    assert suites.tag == "testsuites"
    for element in suites.iter():
        children, required, others = SCHEMA[element.tag]
        assert {child.tag for child in element} <= children
        assert required <= set(element.keys()) <= required | others
    (suite,) = suites
    assert suite.get("tests") == suites.get("tests") == str(len(list(suites.iter("testcase"))))
    for tag, attribute in COUNTED.items():
        assert suite.get(attribute) == str(len(list(suites.iter(tag))))
    return suites


def cases(suites: ElementTree.Element) -> dict[str, ElementTree.Element | None]:
    """What became of each case, by its name; None where it passed."""
    return {str(case.get("name")): next(iter(case), None) for case in suites.iter("testcase")}


@pytest.mark.parametrize(
    ("choices", "claim", "control"),
    [
        ({"claim": 2.0}, None, None),
        ({"claim": 9.0}, "failure", None),
        ({"claim": 2.9, "builds": 2}, "failure", "skipped"),
        ({"claim": 2.0, "control_ratio": 1.2}, "error", "error"),
        ({"claim": None}, "skipped", None),
        ({"claim": None, "control_ratio": 1.2}, "skipped", "skipped"),
    ],
)
def test_there_is_a_case_for_each_claim_and_each_control(
    choices: dict[str, Any], claim: str | None, control: str | None, make_manifest: Any, make_result: Any
) -> None:
    content = ReportContent(manifest=make_manifest(), result=make_result(batches=(1,), **choices))
    (claimed, controlled) = cases(read(content)).items()
    assert controlled[0] == "A/A control: two copies of dense are as fast as each other at batch 1"
    for (_, found), outcome in ((claimed, claim), (controlled, control)):
        assert (None if found is None else found.tag) == outcome
        assert found is None or found.get("message")


def test_a_control_that_was_disturbed_says_why(make_manifest: Any, make_result: Any) -> None:
    result = make_result(batches=(1,), claim=2.0)
    control = replace(result.controls[0], disturbed="9 of 12 rounds were disturbed")
    suites = read(ReportContent(manifest=make_manifest(), result=replace(result, controls=(control,))))
    (error,) = suites.iter("error")
    assert error.attrib == {"message": "9 of 12 rounds were disturbed", "type": "INVALID"}


@pytest.mark.parametrize(
    ("outcome", "tag"),
    [(Outcome.SLOWER, "failure"), (Outcome.FASTER, None), (Outcome.UNDECIDED, "skipped"), (Outcome.INVALID, "error")],
)
def test_a_comparison_with_a_baseline_fails_where_a_speedup_shrank(
    outcome: Outcome, tag: str | None, make_manifest: Any, make_result: Any, make_change: Any
) -> None:
    change = make_change(outcome)
    comparison = Comparison(tolerance=0.01, changes=(change,), baselines=(), differences={})
    result = replace(make_result(batches=(1,)), baseline_comparison=comparison.to_document())
    found = cases(read(ReportContent(manifest=make_manifest(), result=result)))
    case = found["pruned keeps its speed-up against the baseline's at batch 1"]
    assert (None if case is None else case.tag) == tag
    assert case is None or "3.00× before, 2.70× after" in str(case.get("message"))


def test_the_properties_say_on_what_machine_and_how_it_was_measured(make_manifest: Any, make_result: Any) -> None:
    suites = read(ReportContent(manifest=make_manifest(), result=make_result()))
    found = {one.get("name"): one.get("value") for one in suites.iter("property")}
    assert found["machine_class"] == "Test CPU, 2 CPUs"
    assert (found["builds"], found["threads"], found["version.numpy"]) == ("5", "1", "2.4")
    assert "gpu" not in found


def test_a_run_that_was_not_measured_has_no_case(make_manifest: Any) -> None:
    assert cases(read(ReportContent(manifest=make_manifest(), result=None))) == {}


def test_a_name_with_control_characters_still_gives_valid_xml(make_manifest: Any, make_result: Any) -> None:
    result = make_result(latencies_ns={"dense": 1_000_000, "a\x00\x1bb": 400_000}, claim=9.0)
    assert any("a\ufffd\ufffdb" in name for name in cases(read(ReportContent(manifest=make_manifest(), result=result))))
