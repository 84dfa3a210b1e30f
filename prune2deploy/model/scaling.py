"""How the spread of initial weights depends on widths: recognised from numbers, or from the weights themselves.

Laws in use: constant, 1/fan-in, 1/fan-out, 1/(fan-out of one convolution group) for the variance. Sources: LeCun et al.
1998, He et al. 2015; the last is that of the EfficientNet reference implementation.
"""

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

# Numerators of variance laws in use: 1/3 (uniform with bound 1/sqrt(fan)), 2/3, 1, 2, 3, 6.
_NUMERATORS = (1 / 3, 2 / 3, 1.0, 2.0, 3.0, 6.0)
_SAME_NUMBER = 1e-6


class Law(enum.Enum):
    """Which width the variance falls with."""

    CONSTANT = "constant"
    FAN_IN = "1/fan-in"
    FAN_OUT = "1/fan-out"
    GROUP_FAN_OUT = "1/fan-out of a group"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fans:
    """Connections into and out of a unit, kernel positions counted. ``groups`` are those of the convolution."""

    fan_in: int
    fan_out: int
    groups: int

    def width(self, law: Law) -> float:
        """The number that the variance falls with; 1 for the constant law."""
        return {
            Law.CONSTANT: 1.0,
            Law.FAN_IN: float(self.fan_in),
            Law.FAN_OUT: float(self.fan_out),
            Law.GROUP_FAN_OUT: self.fan_out / self.groups,
        }[law]


def fans_of(module: nn.Module, tensor: Tensor) -> Fans | None:
    """Fans of a weight, or of the weight that a bias belongs to; None where the module has no weight matrix."""
    weight = tensor if tensor.dim() >= 2 else getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    positions = math.prod(weight.shape[2:])
    return Fans(
        fan_in=weight.shape[1] * positions,
        fan_out=weight.shape[0] * positions,
        groups=int(getattr(module, "groups", 1)),
    )


def law_of_numbers(spreads: Sequence[float], fans: Sequence[Fans]) -> Law:
    """The law behind standard deviations (or bounds) that one line of code gave for layers with these fans.

    Where the numbers are all alike, it is that of a constant unless all layers have the same fans, which cannot tell;
    then it is a law only if the numerator is one in use, to six digits.
    """
    if not all(spread > 0 for spread in spreads):
        return Law.CONSTANT
    for law in (Law.FAN_IN, Law.FAN_OUT, Law.GROUP_FAN_OUT):
        products = [spread**2 * fan.width(law) for spread, fan in zip(spreads, fans, strict=True)]
        widths = {fan.width(law) for fan in fans}
        alike = max(products) - min(products) <= _SAME_NUMBER * max(products)
        known = any(abs(products[0] / numerator - 1) <= _SAME_NUMBER for numerator in _NUMERATORS)
        if alike and (len(widths) > 1 or known):
            return law
    return Law.CONSTANT


def law_of_variances(draws: Iterable[tuple[float, int, Fans]]) -> Law:
    """The law that the variances of drawn weights follow best; each draw is (variance, number of values, fans).

    A law is taken over the constant one only if it at least halves the spread of the logarithms, so that noise of
    small tensors does not make one.
    """
    known = [(variance, count, fans) for variance, count, fans in draws if variance > 0 and count > 1]
    if not known:
        return Law.CONSTANT

    def spread(law: Law) -> float:
        total = float(sum(count for _, count, _ in known))
        logs = [math.log(variance * fans.width(law)) for variance, _, fans in known]
        mean = sum(log * count for log, (_, count, _) in zip(logs, known, strict=True)) / total
        return sum((log - mean) ** 2 * count for log, (_, count, _) in zip(logs, known, strict=True)) / total

    if len({(fans.fan_in, fans.fan_out, fans.groups) for _, _, fans in known}) == 1:
        return _law_of_one(known)
    best = min(Law, key=spread)
    return best if spread(best) < 0.5 * spread(Law.CONSTANT) else Law.CONSTANT


def _law_of_one(draws: Sequence[tuple[float, int, Fans]]) -> Law:
    """Layers of one shape cannot show a trend; a numerator in use, within the error of the estimate, tells."""
    count = sum(count for _, count, _ in draws)
    variance = sum(variance * n for variance, n, _ in draws) / count
    tolerance = 4 * math.sqrt(2 / count)
    for law in (Law.FAN_IN, Law.FAN_OUT, Law.GROUP_FAN_OUT):
        product = variance * draws[0][2].width(law)
        if any(abs(product / numerator - 1) <= min(tolerance, 0.05) for numerator in (1 / 3, 1.0, 2.0)):
            return law
    return Law.CONSTANT
