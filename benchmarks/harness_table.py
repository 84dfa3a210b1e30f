"""Tables of ``benchmarks/harness.py``: how often the protocol was right, and how often a naive script."""

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import Any

import numpy as np
from harness_load import KINDS
from harness_networks import KNOWN

from prune2deploy.bench.claims.verdicts import Verdict, judge
from prune2deploy.bench.statistics.intervals import Interval, ratio_interval

_FALSE_CLAIM = 1.02
_NAIVE_DIFFERENCE = 0.01

Record = Mapping[str, Any]


def tables(document: Record) -> list[str]:
    """Markdown lines of everything that the document holds."""
    return [*_same(document), "", *_known(document), "", *_agreement(document)]


def _same(document: Record) -> Iterator[str]:
    yield (
        "| A/A: a network against its copy | comparisons | INVALID | valid intervals that exclude 1 | "
        "all intervals that exclude 1 | wrong verdicts | "
        "half-width, median | builds, median | seconds, median | naive: differs by 1% or more |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for title, records in _same_groups(document):
        if records:
            yield _same_line(title, records)


def _same_groups(document: Record) -> Iterator[tuple[str, list[Record]]]:
    unloaded = _matching(document, "same/unloaded/")
    loaded = _matching(document, "same/loaded/")
    yield "no load of ours", unloaded
    for kind in KINDS:
        yield kind, [record for record in loaded if record["load"] == kind]
    yield "all", [*unloaded, *loaded]


def _same_line(title: str, records: list[Record]) -> str:
    intervals = [record["ratios"]["second"] for record in records]
    valid = [
        interval for record, interval in zip(records, intervals, strict=True) if _valid(record) and interval["low"]
    ]
    wrong = sum(_wrong_verdicts(record, interval) for record, interval in zip(records, intervals, strict=True))
    naive = [record["naive_ms"][1] / record["naive_ms"][0] for record in records if record["naive_ms"]]
    off = sum(abs(ratio - 1) >= _NAIVE_DIFFERENCE for ratio in naive)
    told = [interval for interval in intervals if interval["low"]]
    excluding = f"{_excluding(valid, 1.0)} of {len(valid)} | {_excluding(told, 1.0)} of {len(told)}"
    return (
        f"| {title} | {len(records)} | {sum(not _valid(record) for record in records)} | "
        f"{excluding} | {wrong} | {_width(intervals)} | {_median(records, 'builds')} | {_median(records, 'seconds')} | "
        f"{off} of {len(naive)} |"
    )


def _wrong_verdicts(record: Record, interval: Record) -> int:
    """Claims that are false (2% faster) but CONFIRMED, or true (2% slower at most) but REFUTED."""
    found = _as_interval(interval)
    passed = _valid(record)
    false_claim = judge(_FALSE_CLAIM, found, control_passed=passed) is Verdict.CONFIRMED
    true_claim = judge(1 / _FALSE_CLAIM, found, control_passed=passed) is Verdict.REFUTED
    return int(false_claim) + int(true_claim)


def _known(document: Record) -> Iterator[str]:
    records = _matching(document, "known/")
    if not records or len(document["reference"]) < 3:
        return
    reference = np.array(document["reference"])
    valid = [record for record in records if _valid(record)]
    yield (
        f"| built to differ by | truth ({len(reference)} builds) | intervals that hold it | half-width, median | "
        "error of the estimate, median | error of a naive script, median | naive: off by 1% or more |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    held = told = 0
    for place, (title, layers) in enumerate(KNOWN.items(), start=1):
        truth = ratio_interval(list(reference[:, place]), list(reference[:, 0]))
        intervals = [record["ratios"][f"slower-{layers}"] for record in valid]
        intervals = [interval for interval in intervals if interval["low"]]
        inside = len(intervals) - _excluding(intervals, truth.estimate)
        errors = [abs(interval["estimate"] / truth.estimate - 1) for interval in intervals]
        ratios = [record["naive_ms"][place] / record["naive_ms"][0] for record in records if record["naive_ms"]]
        naive = [abs(ratio / truth.estimate - 1) for ratio in ratios]
        held, told = held + inside, told + len(intervals)
        yield (
            f"| {title} | {truth.estimate:.4f} ± {truth.half_width or math.nan:.2%} | {inside} of {len(intervals)} | "
            f"{_width(intervals)} | {median(errors):.2%} | {f'{median(naive):.2%}' if naive else '–'} | "
            f"{sum(error >= _NAIVE_DIFFERENCE for error in naive)} of {len(naive)} |"
        )
    yield f"| all | | {held} of {told} | | | | |"
    yield ""
    yield (
        f"{len(valid)} of {len(records)} comparisons valid; {_median(records, 'builds')} builds and "
        f"{_median(records, 'seconds')} s each, in the median."
    )


def _agreement(document: Record) -> Iterator[str]:
    if "agreement" not in document:
        return
    yield "| | plain loop | ours | ratio |"
    yield "| --- | ---: | ---: | ---: |"
    for name, found in document["agreement"].items():
        yield f"| median, {name} | {found['plain_ms']:.3f} ms | {found['ours_ms']:.3f} ms | {_spell(found['ratio'])} |"
    overhead = document["overhead"]
    yield (
        f"| whole block of a {overhead['bare_ms']:.2f} ms inference | | | {_spell(overhead['ratio'])} |"
        f"\n| timing a run that does nothing | | {overhead['of_nothing_ns']:.0f} ns | |"
    )


def _matching(document: Record, prefix: str) -> list[Record]:
    return [record for key, record in document["comparisons"].items() if key.startswith(prefix)]


def _valid(record: Record) -> bool:
    return record["control"]["passed"] is not False and record["control"]["disturbed"] is None


def _excluding(intervals: Iterable[Record], value: float) -> int:
    return sum(not interval["low"] <= value <= interval["high"] for interval in intervals)


def _width(intervals: Iterable[Record]) -> str:
    widths = [math.sqrt(interval["high"] / interval["low"]) - 1 for interval in intervals if interval["low"]]
    return f"{median(widths):.2%}" if widths else "–"


def _median(records: Iterable[Record], name: str) -> str:
    return f"{median(record[name] for record in records):.0f}"


def _as_interval(interval: Record) -> Interval:
    fields = {name: interval[name] for name in ("estimate", "low", "high")}
    return Interval(**fields, confidence=0.95, builds=0)


def _spell(ratio: Record) -> str:
    return f"{ratio['estimate']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f})"
