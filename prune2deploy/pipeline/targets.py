"""What pruning is to reach: shares of a model that stay, and times that it may take."""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

from prune2deploy.errors import InputError
from prune2deploy.pipeline.choices import DEFAULT_RANKING, OPTIMAL_RANKING, PARETO_VARIANTS

DEFAULT_SOLVER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTarget:
    """What one run of a batch may take: ``fraction`` of what the dense model takes, or ``nanoseconds``; one of them.

    Raises:
        InputError: none or both are set, or one is out of its range.
    """

    fraction: float | None = None
    nanoseconds: float | None = None

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.nanoseconds is None):
            raise InputError("a latency is a fraction of the dense one, or a time", where="--latency")
        if self.fraction is not None:
            check_fraction("--latency", self.fraction)
        elif self.nanoseconds is not None and not 0 < self.nanoseconds < math.inf:
            raise InputError("is no time", where=f"--latency {self.nanoseconds:g} ns", hint="pass --latency 2.0ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What stays of the dense model, as fractions strictly between 0 and 1; all that are set must hold.

    ``memory`` is that of the weights and of the activations that live at once, at a batch.
    """

    flops: float | None = None
    parameters: float | None = None
    memory: float | None = None
    latency: LatencyTarget | None = None

    def __post_init__(self) -> None:
        for option, value in (("--flops", self.flops), ("--params", self.parameters), ("--memory", self.memory)):
            if value is not None:
                check_fraction(option, value)

    @property
    def is_set(self) -> bool:
        """Whether there is any target."""
        return self != Targets()

    @property
    def needs_units(self) -> bool:
        """Whether a target is among them whose prices come of the network as units: memory or latency."""
        return self.memory is not None or self.latency is not None

    def required(self) -> "Targets":
        """Itself.

        Raises:
            InputError: no target is set.
        """
        if not self.is_set:
            raise InputError(
                "no target is set",
                hint="say what of the dense model stays: --latency 0.5, --flops 0.33, --params 0.5 or --memory 0.5",
            )
        return self

    def to_document(self) -> dict[str, Any]:
        """As a JSON object; memory and latency only where they are set, as in runs from before there were any."""
        later = {"memory": self.memory, "latency": None if self.latency is None else asdict(self.latency)}
        return {
            "flops": self.flops,
            "parameters": self.parameters,
            **{name: value for name, value in later.items() if value is not None},
        }


def check_fraction(option: str, value: float) -> float:
    """``value`` itself, if it is a share that pruning can aim at: more than 0 and less than 1.

    Raises:
        InputError: it is not; the message says what it would mean.
    """
    example = f"pass the share of the dense model that stays, between 0 and 1: {option} 0.33"
    if not math.isfinite(value):
        raise InputError("is not a finite number", where=f"{option} {value:g}", hint=example)
    if value < 0:
        raise InputError("is negative", where=f"{option} {value:g}", hint=example)
    if value == 0:
        raise InputError("nothing would be left", where=f"{option} {value:g}", hint=example)
    if value == 1:
        raise InputError("nothing would be removed", where=f"{option} {value:g}", hint=example)
    if value > 1:
        percent = f"did you mean {option} {value / 100:g}? " if 2 < value < 100 else ""
        raise InputError("is more than the whole model", where=f"{option} {value:g}", hint=percent + example)
    return value


def ranking_for(*, needs_units: bool) -> str:
    """The ranking that suits targets, of which one is of memory or latency (``needs_units``) or none is."""
    return OPTIMAL_RANKING if needs_units else DEFAULT_RANKING


def check_latency(asked: bool, precision: str | None) -> None:
    """Refuse a latency target at a precision that has no latencies.

    Raises:
        InputError: int8.
    """
    if asked and precision == "int8":
        raise InputError(
            "latencies are not measured in int8",
            where="--precision int8",
            hint="prune at --precision fp32 and export at int8, or set a target with --flops",
        )


def check_pareto(fractions: tuple[float, ...], targets: Targets, variants: tuple[str, ...]) -> None:
    """Refuse what is no family of latencies.

    Raises:
        InputError: a fraction is not in (0, 1), they do not descend, a latency is among ``targets`` too, or a variant
            is asked for that compares with one network.
    """
    if targets.latency is not None:
        raise InputError(
            "both set what latency stays", where="--latency and --pareto", hint="pass the one or the other"
        )
    for fraction in fractions:
        check_fraction("--pareto", fraction)
    if any(one <= other for one, other in itertools.pairwise(fractions)):
        raise InputError(
            "does not descend, each once",
            where=f"--pareto {','.join(f'{fraction:g}' for fraction in fractions)}",
            hint="for instance --pareto 0.8,0.65,0.5",
        )
    if compared := [name for name in variants if name not in PARETO_VARIANTS]:
        raise InputError(
            f"{' and '.join(compared)} would compare with one pruned network, and --pareto makes several",
            where=f"--variants {','.join(variants)}",
            hint="leave --variants out, or cut to one --latency",
        )


def check_measured_at(batch: int, threads: int | None, solver_seconds: float) -> None:
    """Refuse what cannot be measured with, or solved in.

    Raises:
        InputError: a count is below 1, or the time is none.
    """
    for option, value in (("--batch", batch), ("--threads", threads)):
        if value is not None and value < 1:
            raise InputError("must be at least 1", where=f"{option} {value}")
    if not 0 < solver_seconds < math.inf:
        raise InputError("is no time", where=f"--solver-seconds {solver_seconds:g}", hint="pass seconds, such as 60")
