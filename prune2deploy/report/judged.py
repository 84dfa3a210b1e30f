"""What the scenario of a measurement judges, as a figure of a row and in words."""

from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.subjects import BATCHES, OFFLINE, SINGLE_STREAM

_WORDS = {BATCHES: "latency, median", SINGLE_STREAM: "latency, 90th percentile", OFFLINE: "a batch offline"}


def scenario_of(result: BenchResult | None) -> str:
    """The scenario that was measured; results from before there were scenarios are those of batches."""
    return BATCHES if result is None else str(result.protocol.get("scenario", BATCHES))


def judged_ns(row: Row, scenario: str) -> float:
    """The latency that a row is judged by, of all builds together; offline a batch's share of the time of its queue."""
    p90 = row.latency_ns.p90
    return p90 if scenario == SINGLE_STREAM and p90 is not None else row.latency_ns.p50


def judged_in_words(scenario: str) -> str:
    """What ``judged_ns`` is."""
    return _WORDS.get(scenario, _WORDS[BATCHES])
