"""Reading a ``claims.toml``: every mistake in it is one line that names the file, the claim and the key."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prune2deploy.bench.claims.kinds import KINDS, LATENCY, PERCENTILES, SPEEDUP, Claim, Kind
from prune2deploy.errors import InputError

_HINT = 'write one table for each claim: [[claim]] and below it, for instance, speedup = 2.0 and variant = "pruned"'
_FILTERS = ("variant", "engine", "precision")


def read_claims(path: Path) -> tuple[Claim, ...]:
    """The claims of a file, in its order. What they are about is held against a measurement by ``require_measured``.

    Raises:
        InputError: the file is missing, no TOML, holds no claim, or one that is not understood.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError as error:
        raise InputError(
            "there is no such file", where=where, hint="pass the TOML file that holds the claims"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is no TOML: {str(error).splitlines()[0]}", where=where, hint=_HINT) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where) from error
    for key in document:
        if key != "claim":
            raise InputError(f"has an unknown table or key {key!r}", where=where, hint=_HINT)
    tables = document.get("claim", [])
    if isinstance(tables, dict):
        raise InputError("[claim] stands in single brackets", where=where, hint="write [[claim]], once for each claim")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError("claim is no table", where=where, hint=_HINT)
    if not tables:
        raise InputError("holds no claims", where=where, hint=_HINT)
    return tuple(_claim(table, where=f"{where}, claim {number}") for number, table in enumerate(tables, start=1))


def _claim(table: Mapping[str, Any], *, where: str) -> Claim:
    for key in table:
        if key not in KINDS and key not in _READERS:
            raise InputError(
                f"unknown key {key!r}",
                where=where,
                hint=f"bounds are {', '.join(KINDS)}; filters and settings are {', '.join(_READERS)}",
            )
    bounds = [key for key in table if key in KINDS]
    if len(bounds) != 1:
        found = "there is no bound" if not bounds else f"there are several bounds ({', '.join(bounds)})"
        raise InputError(found, where=where, hint=f"write exactly one of {', '.join(KINDS)}, and a [[claim]] for each")
    kind = KINDS[bounds[0]]
    fields = {key: _READERS[key](table[key], f"{where}, {key}") for key in table if key in _READERS}
    _require_fitting(kind, fields, where)
    return Claim(kind=kind.key, bound=_bound(kind, table[kind.key], f"{where}, {kind.key}"), where=where, **fields)


def _bound(kind: Kind, value: Any, where: str) -> Any:
    if kind.key == SPEEDUP and isinstance(value, str):
        if value == "flops":
            return value
        raise InputError(f'is a factor above 0 or "flops", not {value!r}', where=where, hint="write speedup = 2.0")
    return kind.checked(value, where=where)


def _require_fitting(kind: Kind, fields: Mapping[str, Any], where: str) -> None:
    """Refuse settings that mean nothing for this kind, so that nobody believes they were heeded."""
    if "percentile" in fields and kind.key != LATENCY:
        raise InputError(
            f"{kind.key} has no percentile", where=f"{where}, percentile", hint=f"leave it out, or claim {LATENCY}"
        )
    if "against" in fields and not kind.relative:
        relative = ", ".join(key for key, other in KINDS.items() if other.relative)
        raise InputError(
            f"{kind.key} compares with nothing", where=f"{where}, against", hint=f"leave it out, or claim {relative}"
        )
    if "against_precision" in fields and not kind.crosses_precisions:
        crossing = ", ".join(key for key, other in KINDS.items() if other.crosses_precisions)
        raise InputError(
            f"{kind.key} is compared within one precision" if kind.relative else f"{kind.key} compares with nothing",
            where=f"{where}, against_precision",
            hint=f"leave it out, or claim {crossing}",
        )
    if "batch" in fields and not kind.of_batch:
        raise InputError(
            f"{kind.key} is that of a file and its engine, at all batch sizes",
            where=f"{where}, batch",
            hint="leave it out",
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"is a text in quotes, not {value!r}", where=where)
    return value


def _batch(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"is a batch size, a whole number from 1, not {value!r}", where=where)
    return value


def _percentile(value: Any, where: str) -> int:
    if isinstance(value, bool) or value not in PERCENTILES:
        raise InputError(f"is one of {', '.join(map(str, PERCENTILES))}, not {value!r}", where=where)
    return int(value)


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(_FILTERS, _text),
    "batch": _batch,
    "against": _text,
    "against_precision": _text,
    "percentile": _percentile,
    "name": _text,
}
