"""How figures are spelled for people: the only place where units are converted."""

import datetime
import math
from collections.abc import Sequence

NOTHING = "–"

_LATENCY_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_ENERGY_UNITS = ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"))
_COUNT_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def spell_latency(latency_ns: float | None) -> str:
    """A latency with three significant digits in a fitting unit: ``1.23 ms``."""
    if latency_ns is None:
        return NOTHING
    for scale, unit in _LATENCY_UNITS:
        if latency_ns >= scale:
            return f"{_three_digits(latency_ns / scale)} {unit}"
    return f"{latency_ns:.3g} ns"


def spell_count(count: float | None) -> str:
    """A count with three significant digits: ``41.1 M``."""
    if count is None:
        return NOTHING
    for scale, unit in _COUNT_UNITS:
        if abs(count) >= scale:
            return f"{_three_digits(count / scale)} {unit}"
    return f"{count:.3g}"


def spell_bytes(count: float | None) -> str:
    """A size in decimal units: ``1.23 MB``."""
    if count is None:
        return NOTHING
    return f"{spell_count(count)}B" if count >= 1000 else f"{count:g} B"


def spell_energy(energy_joules: float | None) -> str:
    """An energy with three significant digits: ``12.3 mJ``."""
    if energy_joules is None:
        return NOTHING
    for scale, unit in _ENERGY_UNITS:
        if energy_joules >= scale:
            return f"{_three_digits(energy_joules / scale)} {unit}"
    return f"{energy_joules * 1e6:.3g} µJ"


def spell_percent(fraction: float | None, *, digits: int = 1) -> str:
    """A fraction as a percentage: ``33.0%``."""
    return NOTHING if fraction is None else f"{fraction * 100:.{digits}f}%"


def spell_points(difference: float | None) -> str:
    """A difference of two fractions in percentage points: ``−0.4 points``."""
    if difference is None:
        return NOTHING
    points = round(difference * 100, 1)
    sign = "±" if points == 0 else "+" if points > 0 else "−"
    return f"{sign}{abs(points):.1f} points"


def spell_ratio(ratio: float | None) -> str:
    """A ratio: ``2.90×``."""
    return NOTHING if ratio is None else f"{ratio:.2f}×"


def spell_interval(low: float | None, high: float | None) -> str:
    """An interval of ratios: ``2.80 to 3.00``."""
    return NOTHING if low is None or high is None else f"{low:.2f} to {high:.2f}"


def spell_error(error: float | None) -> str:
    """A relative error: ``1.2e-06``."""
    return NOTHING if error is None else f"{error:.1e}"


def spell_number(value: object) -> str:
    """Any JSON value, shortly."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {spell_number(entry)}" for name, entry in value.items()) or NOTHING
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(spell_number(entry) for entry in value) or NOTHING
    return str(value)


def spell_moment(stamp: str) -> str:
    """An ISO 8601 time as ``31 January 2026, 14:25 UTC``; any other text as it stands."""
    try:
        moment = datetime.datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M}{' UTC' if moment.tzinfo is not None else ''}"


def _three_digits(value: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2
    return f"{value:.{decimals}f}"
