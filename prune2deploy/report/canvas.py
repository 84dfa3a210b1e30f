"""From a matplotlib figure to an SVG that lives in a page: themed by CSS variables, titled, with ids of its own."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# As wide as a phone shows at about full size, so that text stays legible there; the page sets several side by side.
WIDTH_INCHES = 3.9

# Stand-ins that matplotlib can draw with; the page's CSS variables take their places in the SVG.
INK = "#0a0b01"
MUTED = "#0a0b02"
LINE = "#0a0b03"
SURFACE = "#0a0b04"
ACCENT = "#0a0b05"
REFUSED = "#0a0b06"
_LONGEST_NAME = 24
_NAMED_VARIANTS = {"dense": "#0a0c01", "pruned": "#0a0c02", "reduced": "#0a0c03"}
_OTHER_VARIANTS = ("#0a0c04", "#0a0c05", "#0a0c06", "#0a0c07")
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    SURFACE: "--surface",
    ACCENT: "--accent",
    REFUSED: "--bad",
    **{colour: f"--{name}" for name, colour in _NAMED_VARIANTS.items()},
    **{colour: f"--other{number}" for number, colour in enumerate(_OTHER_VARIANTS, start=1)},
}
_MARKERS = {"dense": "s", "pruned": "o", "reduced": "D"}
_OTHER_MARKERS = ("^", "v", "P", "X")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 11,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One drawing. ``svg`` is an ``<svg>`` element, figures in words included; ``description`` says how to read it."""

    key: str
    title: str
    description: str
    svg: str


@contextmanager
def drawing(*, height_inches: float) -> Iterator[Figure]:
    """A figure in the report's style, without a window system."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def colour_of(variant: str, variants: Sequence[str]) -> str:
    """The colour of a variant, the same in every plot."""
    if variant in _NAMED_VARIANTS:
        return _NAMED_VARIANTS[variant]
    return _OTHER_VARIANTS[_place(variant, variants) % len(_OTHER_VARIANTS)]


def marker_of(variant: str, variants: Sequence[str]) -> str:
    """The marker of a variant, so that colour is never the only difference."""
    if variant in _MARKERS:
        return _MARKERS[variant]
    place = _place(variant, variants)
    # One further on at each round, so that variants that share a colour differ in their markers.
    return _OTHER_MARKERS[(place + place // len(_OTHER_VARIANTS)) % len(_OTHER_MARKERS)]


def shortened(name: str) -> str:
    """A name that fits beside a plot: the beginning and the end of a long one."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 + 1 :]}"


def legend_above(figure: Figure, labels: Sequence[str]) -> None:
    """A legend over the axes, in as many columns as its longest label leaves room for."""
    figure.legend(loc="outside upper left", ncols=_legend_columns(labels))


def legend_inches(labels: Sequence[str]) -> float:
    """The height that ``legend_above`` takes."""
    return 0.21 * math.ceil(len(labels) / _legend_columns(labels))


def plot_from_figure(figure: Figure, *, key: str, title: str, description: str, figures: str = "") -> Plot:
    """Make the SVG. The same figure always gives the same bytes.

    ``figures`` are what is drawn in words, for who cannot see it; who can finds them in a table.
    """
    buffer = io.BytesIO()
    empty: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"p2d-{key}"}):
        figure.savefig(buffer, format="svg", metadata=empty)
    svg = buffer.getvalue().decode()
    told = f"{description} {figures}".strip()
    return Plot(key=key, title=title, description=description, svg=_for_page(svg, key, title, told))


def _legend_columns(labels: Sequence[str]) -> int:
    widest_points = 34 + 5.6 * max((len(label) for label in labels), default=0)
    return max(1, min(len(labels), int(72 * WIDTH_INCHES / widest_points)))


def _for_page(svg: str, key: str, title: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", svg)
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    view_box = re.search(r'viewBox="[^"]+"', svg)
    opening = (
        f'<svg {view_box[0] if view_box else ""} role="img" aria-labelledby="{key}-title {key}-description">'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-description">{escape(description)}</desc>'
    )
    return opening + svg[svg.index(">") + 1 :].strip()


def _place(variant: str, variants: Sequence[str]) -> int:
    others = [name for name in variants if name not in _NAMED_VARIANTS]
    return others.index(variant) if variant in others else 0
