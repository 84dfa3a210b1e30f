"""Which option of ``p2d train`` belongs to which method. Light: the command line reads it before any stage."""

from collections.abc import Mapping
from typing import Any

from prune2deploy.errors import InputError

METHOD_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "dense": {},
    "3sp": {"--criterion": "criterion", "--per": "per", "--score-images": "images"},
    "epi": {
        "--criterion": "criterion",
        "--score-images": "images",
        "--threshold": "threshold",
        "--window": "window",
        "--fallback-epoch": "fallback_epoch",
        "--prune-epoch": "prune_epoch",
    },
    "prunetrain": {
        "--penalty-ratio": "ratio",
        "--interval": "interval",
        "--dead-below": "dead_below",
        "--dynamic-batch": "dynamic_batch",
        "--largest-batch": "largest_batch",
    },
    "activation-density": {
        "--keep": "keep",
        "--plateau-window": "window",
        "--plateau-epsilon": "epsilon",
        "--minimum-epochs": "minimum_epochs",
        "--threshold": "threshold",
        "--max-rounds": "max_rounds",
        "--accuracy-drop": "accuracy_drop",
        "--every": "every",
    },
}
"""For each method its options, and the field of its options record that each one sets (a test compares the two)."""


def options_of(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the options record of ``method``; ``given`` maps options to values, None where it was not given.

    Raises:
        InputError: an option is not one of the method's.
    """
    taken = METHOD_OPTIONS[method]
    fields = {}
    for option, value in given.items():
        if value is None:
            continue
        if option not in taken:
            owners = [name for name, options in METHOD_OPTIONS.items() if option in options]
            raise InputError(
                f"is no option of --method {method}",
                where=_spelled(option, value),
                hint=f"it belongs to {' and '.join(owners)}; {method} takes {', '.join(taken) or 'none of its own'}",
            )
        fields[taken[option]] = value
    return fields


def _spelled(option: str, value: object) -> str:
    if value is False:
        return f"--no-{option.removeprefix('--')}"
    return option if value is True else f"{option} {value}"
