"""Which rounds must be dropped, by the machine's signals alone."""

from collections.abc import Mapping


def disturbance(before: Mapping[str, float | None], after: Mapping[str, float | None], *, cpus: int) -> str | None:
    """Why the round between two samples of the signals does not count, None if it does."""
    return None


def too_disturbed(kept: int, dropped: int) -> bool:
    """Whether so many rounds were dropped that nothing should be concluded from the others: more than half."""
    return dropped > kept
