"""What a latency holds for."""

from dataclasses import dataclass

from prune2deploy.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An engine and how it runs. ``threads`` are the CPU threads inside one operator (CPU engines only).

    Raises:
        InputError: the batch or the number of threads is not positive.
    """

    engine: str
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        for option, value in (("--batch", self.batch), ("--threads", self.threads)):
            if value < 1:
                raise InputError("is not positive", where=f"{option} {value}", hint=f"for instance {option} 1")

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.engine} at {self.precision}, batch {self.batch}, {threads}"
