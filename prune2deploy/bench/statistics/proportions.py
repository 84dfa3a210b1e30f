"""Intervals of shares of images: of an accuracy, and of what two networks lose and win on the same images.

They tell what other images of the same kind would give; the engine itself names the same class every time.
"""

import math

from scipy import optimize, stats


def share_interval(right: int, images: int, *, confidence: float) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share of which ``right`` of ``images`` were seen, in [0, 1]."""
    found = stats.binomtest(right, images).proportion_ci(confidence_level=confidence, method="exact")
    return float(found.low), float(found.high)


def difference_interval(lost: int, won: int, images: int, *, confidence: float) -> tuple[float, float]:
    """The interval of the difference of two shares of the same images, by Tango's score test, in [-1, 1].

    ``lost`` images are right for the first network alone, ``won`` for the second alone: the estimate is
    (lost - won) / images. All others say nothing of the difference, and the interval is the narrower for it; that of
    two unpaired shares would be far wider. Unlike a bootstrap it has a length where both are 0. Source: Tango 1998,
    "Equivalence test and confidence interval for the difference in proportions for the paired-sample design";
    recommended by Fagerland, Lydersen and Laake 2014.
    """
    quantile = float(stats.norm.ppf(0.5 + confidence / 2))
    estimate, edge = (lost - won) / images, 1e-12

    def score(difference: float) -> float:
        """How many standard errors the counts lie above what ``difference`` would give."""
        linear = (2 * images - lost + won) * difference - lost - won
        root = linear**2 + 8 * images * won * difference * (1 - difference)
        won_share = (math.sqrt(max(root, 0.0)) - linear) / (4 * images)
        variance = images * (2 * won_share + difference * (1 - difference))
        distance = lost - won - images * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if abs(distance) > edge else 0.0
        return distance / math.sqrt(variance)

    low = -1.0 if estimate <= -1 + edge else optimize.brentq(lambda at: score(at) - quantile, -1 + edge, estimate)
    high = 1.0 if estimate >= 1 - edge else optimize.brentq(lambda at: score(at) + quantile, estimate, 1 - edge)
    return float(low), float(high)
