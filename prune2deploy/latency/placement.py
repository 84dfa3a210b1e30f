"""Where a unit is measured: at few widths, the next ones placed by what the ones before showed.

A coarse grid over all axes says how the widths work together. Along each axis, at the full width of the other, a
profile shows steps and plateaus: an interval is halved as long as its middle lies off the line between its ends. Both
together make a surface: that of the grid, bent by the profiles.

Engines compute in tiles, so the points of a profile lie on tile borders and just behind them: multiples of a tile alone
lie on a line and would hide the steps. A narrow axis may take any width, and engines have kernels that only take
multiples of four channels: its profile is two, one of the multiples of four and one of the rest.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.surface import Surface
from prune2deploy.graph.unit import Unit
from prune2deploy.latency.points import Timing

Widths = tuple[int, ...]
Known = Mapping[Widths, Timing]

NARROW_GRANULES = 4
"""An axis of fewer granules may take any width, as ``budget.alignment`` allows."""
MOST_POINTS = 24
TOLERANCE = 0.03
NEGLIGIBLE_SHARE = 0.002

UNSTEADY = 0.1
"""A spread, as a share of its timing, beyond which that is doubted."""

_DOUBTFUL, _EXPECTED_WITHIN = 0.1, 1.25
_MOST_TIMES = 5

_LATTICE = 4
_TILE = 16
_WORST_TOLERANCE = 0.3
_SHARE_AT_TOLERANCE = 0.04


def multiples_of(unit: Unit) -> Widths:
    """The number that each width of a unit is a multiple of: 1, or what groups of channels make it."""
    found = [1] * unit.axes
    shapes = [*unit.inputs, *(operator.shape for operator in unit.operators)]
    for operator in unit.operators:
        attributes = dict(operator.attributes)
        count = attributes.get("channels_per_group", attributes.get("groups", 1))
        from_end = len(attributes["kernel"]) + 1 if "kernel" in attributes else len(operator.shape) - 1
        for shape in (operator.shape, *(shapes[number] for number in operator.reads[:1])):
            if count > 1 and (size := shape[-from_end]) < 0:
                found[-1 - size] = math.lcm(found[-1 - size], count)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The points of one unit whose axes go up to ``widest``.

    Widths are multiples of ``granule`` and the dense one, and on narrow axes any; of each axis only those that are
    multiples of its entry in ``multiples``, as convolutions in groups need. ``share`` is the unit's part of the time of
    the whole network, in [0, 1]: the less it matters, the coarser it is measured.
    """

    widest: Widths
    granule: int
    multiples: Widths = ()
    share: float = 1.0

    def wanted(self, known: Known) -> tuple[Widths, ...]:
        """The points to measure next, given the measured ones; none when the surface is good enough.

        Nothing is refined around points that are ``doubted``.
        """
        missing = self._missing(known)
        if missing or not self._detailed or self.doubted(known):
            return missing
        refined = [
            (deviation, self._on_axis(number, width))
            for number, axis in enumerate(self._axes)
            for one, (members, points) in enumerate(zip(axis.classes, axis.starts, strict=True))
            for deviation, width in _refined(
                members, points, axis.scaled(one, self._profile(number, known))[0], self._tolerance
            )
        ]
        room = max(MOST_POINTS - len(known), 0)
        return tuple(dict.fromkeys(point for _, point in sorted(refined, reverse=True)[:room]))

    def doubted(self, known: Known) -> tuple[Widths, ...]:
        """The measured points to time once more, as something may have taken part in them.

        The full widths, by which everything else is scaled; what is slower than its neighbours along a profile, or the
        profiles together, let expect; and what was not steady. At most five times in all.
        """
        peaks = {self.widest, tuple(axis.top for axis in self._axes)}
        doubts = {point for point in peaks if point in known and known[point].times == 1}
        doubts |= {point for point, timing in known.items() if timing.spread > UNSTEADY and timing.times < _MOST_TIMES}
        if self._detailed and not self._missing(known):
            doubts |= {point for point in self._slow(known) if known[point].times == 1}
        return tuple(point for point in known if point in doubts)

    def _missing(self, known: Known) -> tuple[Widths, ...]:
        """What is measured in any case, and was not yet."""
        start = [self.widest, *itertools.product(*(axis.coarse for axis in self._axes))]
        for number, axis in enumerate(self._axes):
            start += [self._on_axis(number, width) for points in axis.starts for width in points]
        return tuple(point for point in dict.fromkeys(start) if point not in known)

    def _slow(self, known: Known) -> Iterator[Widths]:
        """The measured points that are slower than others let expect."""
        for number, axis in enumerate(self._axes):
            profile = self._profile(number, known)
            for one in range(len(axis.classes)):
                figures = axis.scaled(one, profile)[0]
                widths = sorted(figures)
                for low, middle, high in zip(widths, widths[1:], widths[2:], strict=False):
                    deviation, noise = _deviation(figures, low, middle, high)
                    if deviation > max(_DOUBTFUL, noise):
                        yield self._on_axis(number, middle)
        for point, timing in known.items():
            tops = [self._on_axis(number, width) for number, width in enumerate(point)]
            if len(point) > 1 and point not in tops and all(top in known for top in tops):
                peak = known[self._on_axis(0, self._axes[0].top)].latency_ns
                expected = peak * math.prod(known[top].latency_ns / peak for top in tops)
                if timing.latency_ns > _EXPECTED_WITHIN * expected:
                    yield point

    def surface(self, known: Known) -> Surface:
        """The latency over all widths, once nothing is wanted any more.

        The coarse grid is linear between its points along each axis. At the full width of the other axis the surface is
        the profile, and what the profile adds to the grid there is a factor everywhere. Of two factors for widths that
        are no multiple of four the larger counts, as a kernel that cannot take one of them is left for both.
        """
        if not self.widest:
            return Surface(axes=(), values=np.asarray(known[()].latency_ns))
        grid = [axis.coarse for axis in self._axes]
        latencies = np.asarray([known[point].latency_ns for point in itertools.product(*grid)])
        coarse = Surface(axes=tuple(grid), values=latencies.reshape([len(points) for points in grid]))
        nodes = [axis.nodes(self._profile(number, known)) for number, axis in enumerate(self._axes)]
        values = _within(coarse, *np.meshgrid(*nodes, indexing="ij", sparse=True))
        slowed = np.zeros_like(values)
        for number, axis in enumerate(self._axes):
            along = [-1 if other == number else 1 for other in range(len(nodes))]
            full = [nodes[number] if other == number else np.asarray(one.top) for other, one in enumerate(self._axes)]
            regular, irregular = axis.latencies(nodes[number], self._profile(number, known))
            values = values * (regular / _within(coarse, *full)).reshape(along)
            slower = np.broadcast_to(np.log(irregular / regular).reshape(along), values.shape)
            slowed = np.where(np.abs(slower) > np.abs(slowed), slower, slowed)
        values = values * np.exp(slowed)
        if all(widths[-1] == width for widths, width in zip(nodes, self.widest, strict=True)):
            values[(-1,) * len(nodes)] = known[self.widest].latency_ns
        return Surface(axes=tuple(tuple(int(width) for width in widths) for widths in nodes), values=values)

    @property
    def _detailed(self) -> bool:
        return self.share >= NEGLIGIBLE_SHARE

    @property
    def _tolerance(self) -> float:
        """The deviation that may stay: larger for a unit that matters less, as errors add up in squares."""
        return float(np.clip(TOLERANCE * (_SHARE_AT_TOLERANCE / self.share) ** 0.5, TOLERANCE, _WORST_TOLERANCE))

    @property
    def _axes(self) -> tuple["_Axis", ...]:
        multiples = self.multiples or (1,) * len(self.widest)
        return tuple(
            _axis(width, self.granule, multiple, detailed=self._detailed)
            for width, multiple in zip(self.widest, multiples, strict=True)
        )

    def _on_axis(self, number: int, width: int) -> Widths:
        return tuple(width if other == number else axis.top for other, axis in enumerate(self._axes))

    def _profile(self, number: int, known: Known) -> dict[int, Timing]:
        """What was measured along an axis, at the full width of the others, by width."""
        return {
            point[number]: timing for point, timing in known.items() if point == self._on_axis(number, point[number])
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """The widths of an axis: those of the coarse grid and, for each class, all and those that its profile starts with.

    Classes are the multiples of four and the rest where an axis is narrow; otherwise there is one.
    """

    width: int
    coarse: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def top(self) -> int:
        """The full width: on a narrow axis the largest multiple of four, so that profiles of others are regular."""
        return self.coarse[-1]

    def nodes(self, profile: Mapping[int, Timing]) -> NDArray[np.int64]:
        """The widths between which the surface is linear."""
        return np.asarray(sorted({*itertools.chain(*self.classes)} if len(self.classes) > 1 else profile))

    def latencies(
        self, widths: NDArray[np.int64], profile: Mapping[int, Timing]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The profile at ``widths`` as if all were of the first class, and as they are.

        Shape: (n,) -> (n,), (n,). Linear between what was measured of a class, by its ``scaled`` figures.
        """
        regular = self._regular(widths, profile)
        if len(self.classes) == 1:
            return regular, regular
        figures, scale = self.scaled(1, profile)
        measured = sorted(figures)
        rest = np.interp(widths, measured, [figures[width].latency_ns for width in measured])
        return regular, np.where(np.isin(widths, self.classes[0]), regular, rest * scale(widths))

    def scaled(self, number: int, profile: Mapping[int, Timing]) -> tuple[dict[int, Timing], "Scale"]:
        """The measured figures of a class in the scale in which they lie on a line, and the scale.

        Widths that are no multiple of four are padded to the next one, or left to another kernel. So they are looked at
        both in parts of the latency of the next multiple, and as they are; what is straighter counts.
        """
        figures = {width: profile[width] for width in self.classes[number] if width in profile}
        if number == 0:
            return figures, _as_it_is

        def padded(widths: NDArray[np.int64]) -> NDArray[np.float64]:
            return self._regular(-(-widths // _LATTICE) * _LATTICE, profile)

        scales = padded(np.asarray(list(figures)))
        parts = {
            width: Timing(latency_ns=timing.latency_ns / scale, spread_ns=timing.spread_ns / scale, runs=timing.runs)
            for (width, timing), scale in zip(figures.items(), scales, strict=True)
        }
        if _bend(self.starts[number], parts) < _bend(self.starts[number], figures):
            return parts, padded
        return figures, _as_it_is

    def _regular(self, widths: NDArray[np.int64], profile: Mapping[int, Timing]) -> NDArray[np.float64]:
        measured = sorted(set(profile) & set(self.classes[0]))
        return np.interp(widths, measured, [profile[width].latency_ns for width in measured])


Scale = Callable[[NDArray[np.int64]], NDArray[np.float64]]


def _as_it_is(widths: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.ones(len(widths))


def _bend(points: Sequence[int], figures: Mapping[int, Timing]) -> float:
    """The largest deviation of a point from the line between its neighbours."""
    lines = zip(points, points[1:], points[2:], strict=False)
    return max((abs(_deviation(figures, *line)[0]) for line in lines), default=0.0)


def _axis(width: int, granule: int, multiple: int, *, detailed: bool) -> _Axis:
    narrow = width < NARROW_GRANULES * granule
    lattice = math.lcm(_LATTICE if narrow else granule, multiple)
    step = lattice if width >= 2 * lattice else multiple
    regular = tuple(range(step, width + 1, step))
    rest = tuple(one for one in range(multiple, width + 1, multiple) if one % step) if narrow else ()
    if not narrow and regular[-1] != width:
        regular = (*regular, width)
    small, half = (max(step, round(width / part / step) * step) for part in (8, 2))
    if not detailed:
        ends = tuple(sorted({step, regular[-1]}))
        return _Axis(width=width, coarse=ends, classes=(regular,), starts=(ends,))
    coarse = tuple(sorted({step, half, regular[-1]}))
    start = {small, *coarse}
    if narrow:
        start |= {one + more for one in range(_TILE, width + 1, _TILE) for more in (0, step)} & set(regular)
    else:
        start.add(_behind(regular, half))
    classes, starts = [regular], [tuple(sorted(start))]
    if rest:
        classes.append(rest)
        starts.append(tuple(sorted({rest[0], rest[len(rest) // 2], rest[-1], *({_TILE + 1} & set(rest))})))
    return _Axis(width=width, coarse=coarse, classes=tuple(classes), starts=tuple(starts))


def _behind(candidates: Sequence[int], near: int) -> int:
    """The candidate just behind a border of tiles that lies nearest, where nothing hides a step."""
    tile = max(_TILE, 4 * candidates[0])
    return min(
        (width for width in candidates[1:] if width % tile == candidates[0]),
        key=lambda width: abs(width - near),
        default=near,
    )


def _within(coarse: Surface, *widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """The coarse grid at ``widths``, held at its ends."""
    return coarse.at(*(np.clip(sizes, axis[0], axis[-1]) for sizes, axis in zip(widths, coarse.axes, strict=True)))


def _refined(
    candidates: Sequence[int], start: Sequence[int], profile: Mapping[int, Timing], tolerance: float
) -> Iterator[tuple[float, int]]:
    """The middles to measure next, each with how far the one before it lay off the line.

    The intervals around a point of ``start`` are open if it lies off the line between its neighbours; one that is open
    has its middle measured, and its halves are open if that lies off the line too.
    """
    lines = list(zip(start, start[1:], start[2:], strict=False))
    off = {middle: _deviation(profile, low, middle, high) for low, middle, high in lines}
    for low, high in itertools.pairwise(start):
        deviation, noise = max(
            (off.get(end, (0.0, 0.0)) for end in (low, high)), key=lambda found: abs(found[0]) - found[1]
        )
        if abs(deviation) > max(tolerance, noise):
            yield from _halved(candidates, low, high, profile, tolerance, abs(deviation))


def _halved(
    candidates: Sequence[int], low: int, high: int, profile: Mapping[int, Timing], tolerance: float, before: float
) -> Iterator[tuple[float, int]]:
    between = [width for width in candidates if low < width < high]
    if not between:
        return
    middle = between[len(between) // 2]
    behind = _behind(candidates, middle)
    if 3 * low + high <= 4 * behind <= low + 3 * high:
        middle = behind
    if middle not in profile:
        yield before, middle
        return
    deviation, noise = _deviation(profile, low, middle, high)
    if abs(deviation) > max(tolerance, noise):
        yield from _halved(candidates, low, middle, profile, tolerance, abs(deviation))
        yield from _halved(candidates, middle, high, profile, tolerance, abs(deviation))


def _deviation(profile: Mapping[int, Timing], low: int, middle: int, high: int) -> tuple[float, float]:
    """How far the middle lies above the line between two others, and two spreads of that, as shares of the middle."""
    part = (middle - low) / (high - low)
    ends = ((profile[low], 1 - part), (profile[high], part))
    line = sum(weight * timing.latency_ns for timing, weight in ends)
    spread = sum((weight * timing.spread_ns) ** 2 for timing, weight in (*ends, (profile[middle], 1.0))) ** 0.5
    latency = max(profile[middle].latency_ns, 1e-9)
    return (latency - line) / latency, 2 * spread / latency
