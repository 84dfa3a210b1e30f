"""How settled a network's would-be widths are: the early pruning indicator.

Two networks pruned from one dense network are compared by their widths alone, not by which channels they keep. Pure
functions of widths. Source: Shen et al. 2022, "When to prune? A policy towards early structural pruning".
"""

from collections.abc import Sequence

EARLIER = 5
"""How many earlier indicators the newest must not fall below."""

Widths = Sequence[int]


def similarity(first: Widths, second: Widths) -> float:
    """Ψ = 1 − mean over layers of |a − b| / (a + b). Shapes: (layers,) each. Range: [0, 1], 1 for equal widths.

    Two empty layers are equal.

    Raises:
        ValueError: the networks have different numbers of layers, or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"networks of {len(first)} and {len(second)} layers cannot be compared")
    distances = [abs(a - b) / (a + b) if a + b else 0.0 for a, b in zip(first, second, strict=True)]
    return 1 - sum(distances) / len(distances)


def indicator(history: Sequence[Widths], window: int) -> float | None:
    """EPI = mean over j = 1..window of Ψ(N_t, N_{t−j}), N_t the last of ``history``; None with fewer before it.

    Raises:
        ValueError: the window is below 1.
    """
    if window < 1:
        raise ValueError(f"a window of {window} networks")
    if len(history) <= window:
        return None
    last = history[-1]
    return sum(similarity(last, history[-1 - back]) for back in range(1, window + 1)) / window


def has_settled(curve: Sequence[float | None], threshold: float) -> bool:
    """Whether the last indicator of ``curve`` is above ``threshold`` and not below any of the ``EARLIER`` before it.

    Indicators that are not defined yet (None) hold nothing back.
    """
    if not curve or curve[-1] is None:
        return False
    last = curve[-1]
    before = curve[-1 - EARLIER : -1]
    return last > threshold and all(one is None or last >= one for one in before)
