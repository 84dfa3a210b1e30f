"""The tables of ``papers.py``: each paper's claim, what was measured here, a verdict at this scale.

Accuracies and costs are compared seed by seed with the dense network (or another method) of the same seed: a difference
or a ratio with a 95% t interval over the seeds, ratios by their logarithms. A claim is CONFIRMED where the whole
interval reaches it, REFUTED where none of it does, else UNDECIDED; fewer than three seeds decide nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

CONFIDENCE = 0.95
LEAST_SEEDS = 3
COMPETITIVE = 0.01
"""An accuracy within a point counts as kept."""

Get = Callable[[Mapping[str, Any]], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over ``count`` seeds with its interval; ``low`` is ``high`` where there are too few for one."""

    mean: float
    low: float
    high: float
    count: int

    def text(self, form: str = ".2f", unit: str = "x") -> str:
        """As a cell of a table."""
        if self.count < LEAST_SEEDS:
            return f"{self.mean:{form}}{unit} (n={self.count})"
        return f"{self.mean:{form}}{unit} ({self.low:{form}} to {self.high:{form}}, n={self.count})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A line of a table: what the paper says, what was found, and whether that is at least ``least``."""

    says: str
    measured: Estimate
    least: float
    form: str = ".2f"
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """CONFIRMED, REFUTED or UNDECIDED."""
        if self.measured.count < LEAST_SEEDS:
            return "UNDECIDED"
        if self.measured.low >= self.least:
            return "CONFIRMED"
        return "REFUTED" if self.measured.high < self.least else "UNDECIDED"

    def row(self) -> str:
        """As a line of a Markdown table."""
        return f"| {self.says} | {self.measured.text(self.form, self.unit)} | {self.verdict} |"


class Cells:
    """The records of one task and network."""

    def __init__(self, document: Mapping[str, Any], task: str, model: str) -> None:
        self.records = [
            record
            for record in document["cells"].values()
            if (record["task"], record["model"]) == (task, model) and "failed" not in record
        ]
        self.speeds = {
            key.rpartition("/")[2]: speeds
            for key, speeds in document["speeds"].items()
            if key.rpartition("/")[0] == f"{task}/{model}".replace(":", "-")
        }

    def by_seed(self, method: str, amount: float, variant: str, get: Get) -> dict[int, float]:
        """A figure of one variant, by seed."""
        found = {
            record["seed"]: get(record["variants"][variant])
            for record in self.records
            if record["method"] == method and record["amount"] == amount and variant in record["variants"]
        }
        return {seed: value for seed, value in found.items() if value is not None}

    def amounts(self, method: str) -> list[float]:
        """The targets, ratios or rounds that a method was run with."""
        return sorted({record["amount"] for record in self.records if record["method"] == method})


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Estimate(mean=mean, low=mean, high=mean, count=count)
    spread = float(stats.sem(values))
    low, high = (mean, mean) if spread == 0 else stats.t.interval(CONFIDENCE, count - 1, loc=mean, scale=spread)
    return Estimate(mean=mean, low=float(low), high=float(high), count=count)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """First minus second, paired by seed."""
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared]) if shared else None


def ratio(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """First over second, paired by seed, averaged as logarithms."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    logs = estimate([math.log(first[seed] / second[seed]) for seed in shared])
    return Estimate(mean=math.exp(logs.mean), low=math.exp(logs.low), high=math.exp(logs.high), count=logs.count)


def tables(document: Mapping[str, Any]) -> Iterator[list[str]]:
    """The table of results of each task and network, and the tables of the papers' claims."""
    pairs = dict.fromkeys((record["task"], record["model"]) for record in document["cells"].values())
    for task, model in pairs:
        cells = Cells(document, task, model)
        title = f"{model} on {task}"
        yield [f"### {title}: all of it", "", *_results(cells)]
        for paper, claims in _PAPERS.items():
            rows = [claim.row() for claim in claims(cells)]
            if rows:
                yield [f"### {title}: {paper}", "", "| claim | measured | at this scale |", "|---|---|---|", *rows]


def accuracy(variant: Mapping[str, Any]) -> float | None:
    """Final top-1 accuracy."""
    value: float | None = variant["accuracy"]
    return value


def training_flops(variant: Mapping[str, Any]) -> float | None:
    """FLOPs of the training."""
    value: float | None = variant["training_flops"]
    return value


def seconds(variant: Mapping[str, Any]) -> float | None:
    """Seconds of the training: its steps, and what the method did between them."""
    spent = variant["seconds"]
    return None if not spent else sum(spent.get(phase, 0.0) for phase in ("training", "deciding", "cutting"))


def flops_left(variant: Mapping[str, Any]) -> float | None:
    """Share of the dense FLOPs of the final network."""
    value: float | None = variant["flops_fraction"]
    return value


def _results(cells: Cells) -> list[str]:
    lines = [
        "| network | at | accuracy | FLOPs left | training FLOPs | training seconds | batch 1 | batch 32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seen = dict.fromkeys(
        (record["method"], record["amount"], variant) for record in cells.records for variant in record["variants"]
    )
    for method, amount, variant in seen:
        if variant == "dense" and not method.startswith("dense"):
            continue
        base = "dense-small-batch" if method == "prunetrain" else "dense"

        def against(
            get: Get, method: str = method, amount: float = amount, variant: str = variant, base: str = base
        ) -> str:
            found = ratio(cells.by_seed(method, amount, variant, get), cells.by_seed(base, 1, "dense", get))
            return "" if found is None else f"{found.mean:.2f}"

        accuracies = estimate(list(cells.by_seed(method, amount, variant, accuracy).values()))
        left = estimate(list(cells.by_seed(method, amount, variant, flops_left).values()))
        name = method if variant in ("pruned", "dense") else f"{variant} (of {method})"
        speeds = [_speed_text(cells, method, amount, variant, batch) for batch in (1, 32)]
        lines.append(
            f"| {name} | {amount:g} | {_percent(accuracies)} | {left.mean:.3f} | {against(training_flops)} | "
            f"{against(seconds)} | {speeds[0]} | {speeds[1]} |"
        )
    return lines


def _percent(value: Estimate) -> str:
    half = (value.high - value.low) / 2
    return f"{value.mean:.1%}" + (f" ± {half:.1%}" if value.count >= LEAST_SEEDS else "") + f" (n={value.count})"


def _speed_name(method: str, amount: float, variant: str) -> tuple[str, str]:
    """Which measurement, and which network in it."""
    if method == "prunetrain":
        return "self-sized", f"prunetrain-{amount:g}"
    if method == "activation-density":
        return "self-sized", f"density-{amount:g}"
    if variant in ("pruned", "dense"):
        return f"{amount:g}", method
    return f"{amount:g}", variant if method == "fisher" else f"{variant}-unaligned"


def _speed(cells: Cells, method: str, amount: float, variant: str, batch: int, against: str = "dense") -> Any:
    measurement, name = _speed_name(method, amount, variant)
    return cells.speeds.get(measurement, {}).get(f"{name}/{batch}", {}).get(against)


def _speed_text(cells: Cells, method: str, amount: float, variant: str, batch: int) -> str:
    found = _speed(cells, method, amount, variant, batch)
    return "" if found is None else f"{found['estimate']:.2f}x"


def _speed_estimate(
    cells: Cells, method: str, amount: float, variant: str, batch: int, against: str
) -> Estimate | None:
    """A measured speed-up; its interval is over engine builds, of one seed."""
    found = _speed(cells, method, amount, variant, batch, against)
    if found is None or found["low"] is None:
        return None
    return Estimate(mean=found["estimate"], low=found["low"], high=found["high"], count=5)


def _points(
    cells: Cells, method: str, amount: float, *, base: str = "dense", variant: str = "pruned"
) -> Estimate | None:
    """Accuracy lost against the dense network, as a negative number."""
    return difference(cells.by_seed(method, amount, variant, accuracy), cells.by_seed(base, 1, "dense", accuracy))


def _faster(cells: Cells, method: str, amount: float, get: Get, *, base: str = "dense") -> Estimate | None:
    return ratio(cells.by_seed(base, 1, "dense", get), cells.by_seed(method, amount, "pruned", get))


def _made(claims: Sequence[tuple[str, Estimate | None, float, str]]) -> Iterator[Claim]:
    for says, measured, least, kind in claims:
        if measured is not None:
            form, unit = (".2f", "x") if kind == "ratio" else ("+.1%", "")
            yield Claim(says=says, measured=measured, least=least, form=form, unit=unit)


def _single_shot(cells: Cells) -> Iterator[Claim]:
    for at in cells.amounts("3sp"):
        plain = cells.by_seed("3sp-plain", at, "pruned", accuracy)
        yield from _made(
            [
                (f"3SP at {at:g}: training is 2x faster", _faster(cells, "3sp", at, seconds), 2.0, "ratio"),
                (
                    f"3SP at {at:g}: inference is 3x faster (batch 1)",
                    _speed_estimate(cells, "3sp", at, "pruned", 1, "dense"),
                    3.0,
                    "ratio",
                ),
                (
                    f"3SP at {at:g}: inference is 3x faster (batch 32)",
                    _speed_estimate(cells, "3sp", at, "pruned", 32, "dense"),
                    3.0,
                    "ratio",
                ),
                (f"3SP at {at:g}: no more than 0.5 points are lost", _points(cells, "3sp", at), -0.005, "points"),
                (
                    f"3SP at {at:g}: scores per FLOP keep more accuracy than plain ones",
                    difference(cells.by_seed("3sp", at, "pruned", accuracy), plain),
                    0.0,
                    "points",
                ),
            ]
        )


def _early(cells: Cells) -> Iterator[Claim]:
    for at in cells.amounts("epi"):
        own = cells.by_seed("epi", at, "pruned", accuracy)
        yield from _made(
            [
                (f"EPI at {at:g}: training costs 2.4x less", _faster(cells, "epi", at, seconds), 2.4, "ratio"),
                (
                    f"EPI at {at:g}: 1.4 points above pruning at initialisation (3SP)",
                    difference(own, cells.by_seed("3sp", at, "pruned", accuracy)),
                    0.014,
                    "points",
                ),
            ]
        )
        grid = {
            method: cells.by_seed(method, at, "pruned", accuracy)
            for method in dict.fromkeys(record["method"] for record in cells.records)
            if method.startswith("epi-at-")
        }
        grid = {method: found for method, found in grid.items() if found}
        if grid:
            best = max(grid, key=lambda method: estimate(list(grid[method].values())).mean)
            yield from _made(
                [
                    (
                        f"EPI at {at:g}: as good as the best epoch of a grid search (here {best.rpartition('-')[2]}), "
                        "to a point",
                        difference(own, grid[best]),
                        -COMPETITIVE,
                        "points",
                    )
                ]
            )


def _prunetrain(cells: Cells) -> Iterator[Claim]:
    base = "dense-small-batch"
    for r in cells.amounts("prunetrain"):
        name = f"PruneTrain, r = {r:g}"
        yield from _made(
            [
                (
                    f"{name}: 40% of the training FLOPs are saved",
                    _faster(cells, "prunetrain", r, training_flops, base=base),
                    1 / 0.6,
                    "ratio",
                ),
                (f"{name}: 39% of the time", _faster(cells, "prunetrain", r, seconds, base=base), 1 / 0.61, "ratio"),
                (
                    f"{name}: accuracy is kept to a point",
                    _points(cells, "prunetrain", r, base=base),
                    -COMPETITIVE,
                    "points",
                ),
            ]
        )


def _density(cells: Cells) -> Iterator[Claim]:
    for rounds in cells.amounts("activation-density"):
        name = f"Activation density, at most {rounds:g} rounds"
        yield from _made(
            [
                (
                    f"{name}: training takes 1.6x fewer FLOPs",
                    _faster(cells, "activation-density", rounds, training_flops),
                    1.6,
                    "ratio",
                ),
                (
                    f"{name}: accuracy is kept to a point",
                    _points(cells, "activation-density", rounds),
                    -COMPETITIVE,
                    "points",
                ),
            ]
        )


def _closer_look(cells: Cells) -> Iterator[Claim]:
    for at in cells.amounts("fisher"):
        pruned = cells.by_seed("fisher", at, "pruned", accuracy)
        reduced = cells.by_seed("fisher", at, "reduced", accuracy)
        yield from _made(
            [
                (f"at {at:g}: reduced beats pruned and tuned", difference(reduced, pruned), 0.0, "points"),
                (
                    f"at {at:g}: reduced beats what one cut by normalised Fisher scores leaves, tuned",
                    difference(reduced, cells.by_seed("fisher-at-once", at, "pruned", accuracy)),
                    0.0,
                    "points",
                ),
                (
                    f"at {at:g}: the pruned architecture from scratch is within a point of reduced",
                    difference(cells.by_seed("fisher", at, "scratch", accuracy), reduced),
                    -COMPETITIVE,
                    "points",
                ),
                *(
                    (
                        f"at {at:g}: reduced is faster than pruned, aligned, batch {batch}",
                        _inverse(_speed_estimate(cells, "fisher", at, "pruned", batch, "reduced")),
                        1.0,
                        "ratio",
                    )
                    for batch in (1, 32)
                ),
            ]
        )
    for at in cells.amounts("fisher-unaligned"):
        yield from _made(
            [
                (
                    f"at {at:g}: reduced is faster than pruned without alignment, batch {batch}",
                    _quotient(
                        _speed_estimate(cells, "fisher-unaligned", at, "reduced", batch, "dense"),
                        _speed_estimate(cells, "fisher-unaligned", at, "pruned", batch, "dense"),
                    ),
                    1.0,
                    "ratio",
                )
                for batch in (1, 32)
            ]
        )


def _inverse(value: Estimate | None) -> Estimate | None:
    if value is None:
        return None
    return Estimate(mean=1 / value.mean, low=1 / value.high, high=1 / value.low, count=value.count)


def _quotient(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    """Of two speed-ups in one measurement; its interval takes both ends at their worst."""
    if first is None or second is None:
        return None
    return Estimate(
        mean=first.mean / second.mean,
        low=first.low / second.high,
        high=first.high / second.low,
        count=first.count,
    )


_PAPERS: Mapping[str, Callable[[Cells], Iterator[Claim]]] = {
    "3SP (van Amersfoort et al. 2020)": _single_shot,
    "EPI (Shen et al. 2022)": _early,
    "PruneTrain (Lym et al. 2019)": _prunetrain,
    "activation density (Foldy-Porto et al. 2020)": _density,
    "A closer look (Crowley et al. 2018)": _closer_look,
}
