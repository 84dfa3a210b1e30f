"""The timed rounds of one build at one precision and batch size, for engines that are built already."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prune2deploy.bench.jobs import Tell
from prune2deploy.bench.machine.disturbance import disturbance, highest_mhz
from prune2deploy.bench.samples import MINIMUM_ROUNDS, Block, Cell
from prune2deploy.bench.subjects import BenchOptions
from prune2deploy.bench.timed.blocks import settle_queue, time_kinds
from prune2deploy.bench.timed.schedule import Slot, round_orders
from prune2deploy.bench.timed.timing import collection_paused, iterations_for, warm_up
from prune2deploy.engines.engine import Array, BuiltEngine

Signals = Mapping[str, float | None]

# Disturbed rounds are run again, but not for ever: a machine that is never quiet shall be told as such.
_MOST_ROUNDS_OVER_ASKED = 2
_FEWEST_ITERATIONS_TO_SETTLE = 8


@dataclass(slots=True, kw_only=True)
class Runner:
    """One built engine with the inputs it takes in turn."""

    slot: Slot
    engine: BuiltEngine
    precision: str
    where: str
    facts: dict[str, Any]
    buffers: tuple[Mapping[str, Array], ...] = ()
    iterations: int = 1

    def blocks(self, turn: int, position: int, *, scenario: str) -> list[Block]:
        """What this engine is timed at in one round, on the next inputs.

        The untimed run brings the weights back into the caches that the others used meanwhile. Where a block holds
        only a few runs, it and the binding (which may run, too) would cost more than they steady.
        """
        if self.iterations >= _FEWEST_ITERATIONS_TO_SETTLE:
            self.engine.bind(self.buffers[turn % len(self.buffers)])
            self.engine.run()
        timed = time_kinds(self.engine, iterations=self.iterations, scenario=scenario)
        return [Block(**asdict(self.slot), round=turn, position=position, **asdict(block)) for block in timed]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCell:
    """A cell with how long each of its rounds took, in seconds."""

    cell: Cell
    round_seconds: tuple[float, ...]


@dataclass(slots=True, kw_only=True)
class _Rounds:
    """What the rounds gave so far. ``signals`` holds one sample more than there are rounds."""

    signals: list[Signals]
    blocks: list[Block] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)

    def go_on(self, options: BenchOptions, *, elapsed: float, seconds: float | None) -> bool:
        """Whether another round is wanted, and fits into ``seconds``."""
        done = len(self.seconds)
        if done - len(self.dropped) >= options.rounds or done >= _MOST_ROUNDS_OVER_ASKED * options.rounds:
            return False
        return seconds is None or done < MINIMUM_ROUNDS or elapsed + max(self.seconds) <= seconds


def time_rounds(
    runners: Sequence[Runner],
    batch: int,
    *,
    options: BenchOptions,
    orders_of: tuple[int, int],
    seconds: float | None,
    cpus: int,
    sample: Callable[[], Signals],
    tell: Callable[[float, str], None],
) -> TimedCell:
    """Warm every engine up, then run rounds until enough of them were undisturbed.

    A round is dropped whole, for all engines, on the machine's signals before and after it alone, never on its timings.
    ``orders_of`` is (build, cell), which fix the random orders. With ``seconds``, rounds are given up, down to three.
    ``cpus`` is how many CPUs the engines use; ``sample`` reads the signals, ``tell`` takes the share done of this cell.
    """
    precision, begun = runners[0].precision, time.monotonic()
    tell(0.0, f"{precision}, batch {batch}: warming up")
    with collection_paused():
        warmup = [_warm(runner, options) for runner in runners]
        orders = round_orders(len(runners), seed=options.seed, build=orders_of[0], cell=orders_of[1])
        rounds = _Rounds(signals=[sample()])
        while rounds.go_on(options, elapsed=time.monotonic() - begun, seconds=seconds):
            turn = len(rounds.seconds)
            kept = turn - len(rounds.dropped)
            tell(kept / options.rounds, f"{precision}, batch {batch}{_in_words(len(rounds.dropped))}")
            round_begun = time.monotonic()
            for position, index in enumerate(next(orders)):
                rounds.blocks += runners[index].blocks(turn, position, scenario=options.scenario)
            rounds.seconds.append(time.monotonic() - round_begun)
            rounds.signals.append(sample())
            highest = highest_mhz(rounds.signals)
            reason = disturbance(rounds.signals[-2], rounds.signals[-1], cpus=cpus, highest_mhz=highest)
            if reason is not None:
                rounds.dropped[str(turn)] = reason
    cell = Cell(
        precision=precision,
        batch=batch,
        blocks=tuple(rounds.blocks),
        warmup=tuple(warmup),
        signals=tuple(rounds.signals),
        dropped=rounds.dropped,
    )
    return TimedCell(cell=cell, round_seconds=tuple(rounds.seconds))


def within(tell: Tell, *, before: float, share: float) -> Callable[[float, str], None]:
    """Progress of a part, which has ``share`` of the whole and begins at ``before``, as progress of the whole."""
    return lambda fraction, text: tell(before + share * min(fraction, 1.0), text)


def _warm(runner: Runner, options: BenchOptions) -> Mapping[str, Any]:
    runner.engine.bind(runner.buffers[0])
    warmed = warm_up(runner.engine.run, block_seconds=options.block_seconds)
    runner.iterations = iterations_for(warmed.latency_ns, options.block_seconds)
    settle_queue(runner.engine, scenario=options.scenario)
    return {**asdict(runner.slot), "medians_ns": warmed.medians_ns, "steady": warmed.steady}


def _in_words(dropped: int) -> str:
    return "" if dropped == 0 else f", {dropped} disturbed round{'s' if dropped > 1 else ''} dropped"
