"""Raw samples: everything one build measured, kept as it came. Nothing is clipped or averaged here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prune2deploy.errors import InputError

SCHEMA_VERSION = 1
MINIMUM_ROUNDS = 3


# What a block timed: whole runs by the wall clock, runs by the device's own clock, copies of the inputs to the device,
# or (one sample) a queue of runs that was never empty.
WALL, DEVICE, COPY, QUEUE = "wall", "device", "copy", "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive timed runs of one engine. ``samples_ns`` holds the time of each in ns.

    ``round`` counts from 0; ``position`` is the place in that round's random order. ``copy`` is 1 for the control.
    ``kind`` is one of "wall", "device", "copy" and "queue"; a queue of ``runs`` runs is one sample.
    """

    variant: str
    copy: int
    round: int
    position: int
    samples_ns: tuple[int, ...]
    kind: str = WALL
    runs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one build measured at one precision and batch size.

    ``warmup`` has one entry a slot: variant, copy, medians_ns, steady. ``signals`` has one entry a round, taken
    before it, and one after the last. ``dropped`` maps disturbed rounds (as text, for JSON) to what disturbed them.
    """

    precision: str
    batch: int
    blocks: tuple[Block, ...]
    warmup: tuple[Mapping[str, Any], ...]
    signals: tuple[Mapping[str, float | None], ...]
    dropped: Mapping[str, str] = field(default_factory=dict)

    def blocks_of(self, variant: str, *, copy: int = 0, kind: str = WALL) -> list[Block]:
        """The blocks of one slot that count (those of disturbed rounds do not), in the order they were taken."""
        dropped = set(self.disturbed)
        return [
            block
            for block in self.blocks
            if (block.variant, block.copy, block.kind) == (variant, copy, kind) and block.round not in dropped
        ]

    def samples_of(self, variant: str, *, copy: int = 0, kind: str = WALL) -> list[int]:
        """All samples of one slot in ns that count, in the order they were taken."""
        return [sample for block in self.blocks_of(variant, copy=copy, kind=kind) for sample in block.samples_ns]

    @property
    def rounds(self) -> int:
        """How many rounds were run, those that do not count included."""
        return max(len(self.signals) - 1, 0)

    @property
    def counts(self) -> bool:
        """Whether enough rounds were left alone: at least three, or all of them."""
        return not self.dropped or self.rounds - len(self.dropped) >= MINIMUM_ROUNDS

    def with_disturbed_rounds(self) -> "Cell":
        """The same with every round counting: what is left to show where too little was undisturbed."""
        return replace(self, dropped={})

    @property
    def disturbed(self) -> dict[int, str]:
        """The rounds that do not count, each with its reason."""
        return {int(number): reason for number, reason in self.dropped.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSamples:
    """One build: a fresh process with fresh engines.

    ``engines`` has one entry a slot: variant, copy, precision, build_seconds, parity_max_error (None without
    reference outputs), details. ``accuracies`` maps "variant/precision" to top-1 accuracy through the engine.
    ``answers`` has one character an image under the same key, in the order of the evaluation set: 1 where the engine
    named its label, else 0. ``memory_bytes`` are the peaks that fresh processes of their own took, also under that key;
    they lie with the first build, as do ``profiles``, the entries of ``bench.aside.profiling.profiles_of``.
    ``energies``, those of ``bench.aside.energy.energies_of``, lie with the first few. ``minimum_seconds`` is how
    long the shortest useful build of this kind would take.
    """

    build: int
    cpus: tuple[int, ...] | None
    cells: tuple[Cell, ...]
    engines: tuple[Mapping[str, Any], ...]
    accuracies: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    profiles: tuple[Mapping[str, Any], ...] = ()
    energies: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    minimum_seconds: float = 0.0

    def cell(self, precision: str, batch: int) -> Cell:
        """The cell of one precision and batch size.

        Raises:
            InputError: this build did not measure it.
        """
        for cell in self.cells:
            if (cell.precision, cell.batch) == (precision, batch):
                return cell
        raise InputError(f"build {self.build} holds no samples at {precision}, batch {batch}")

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> "BuildSamples":
        """From a JSON object.

        Raises:
            InputError: the document is damaged or of another schema version.
        """
        if document.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"the samples have schema version {document.get('schema_version')}, this p2d reads {SCHEMA_VERSION}",
                where=where,
            )
        try:
            fields = {name: value for name, value in document.items() if name != "schema_version"}
            cpus = fields["cpus"]
            fields["cpus"] = None if cpus is None else tuple(cpus)
            fields["cells"] = tuple(_cell(cell) for cell in fields["cells"])
            fields["engines"] = tuple(fields["engines"])
            fields["profiles"] = tuple(fields.get("profiles", ()))
            fields["energies"] = tuple(fields.get("energies", ()))
            fields["memory_bytes"] = {key: tuple(peaks) for key, peaks in fields.get("memory_bytes", {}).items()}
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise InputError(f"the samples are damaged ({error})", where=where, hint="run `p2d bench` again") from error


def _cell(document: Mapping[str, Any]) -> Cell:
    blocks = tuple(Block(**{**block, "samples_ns": tuple(block["samples_ns"])}) for block in document["blocks"])
    fields = {**document, "blocks": blocks}
    return Cell(**{**fields, "warmup": tuple(fields["warmup"]), "signals": tuple(fields["signals"])})
