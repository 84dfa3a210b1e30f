"""How operators move and unite channel labels: one file a family of operators.

``RULES`` maps an ATen operator's name to its rule. A new family is one file and one line here.
"""

from prune2deploy.graph.rules.attention import RULES as ATTENTION
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.convolution import RULES as CONVOLUTION
from prune2deploy.graph.rules.einsum import RULES as EINSUM
from prune2deploy.graph.rules.elementwise import RULES as ELEMENTWISE
from prune2deploy.graph.rules.elementwise import elementwise, is_elementwise
from prune2deploy.graph.rules.fourier import RULES as FOURIER
from prune2deploy.graph.rules.indexing import RULES as INDEXING
from prune2deploy.graph.rules.norm import RULES as NORM
from prune2deploy.graph.rules.pooling import RULES as POOLING
from prune2deploy.graph.rules.product import RULES as PRODUCT
from prune2deploy.graph.rules.recurrent import RULES as RECURRENT
from prune2deploy.graph.rules.reduction import RULES as REDUCTION
from prune2deploy.graph.rules.selection import RULES as SELECTION
from prune2deploy.graph.rules.shape import RULES as SHAPE
from prune2deploy.graph.rules.shuffle import RULES as SHUFFLE

__all__ = ["Call", "Result", "Rule", "rule_for"]

RULES: dict[str, Rule] = {
    **ELEMENTWISE,
    **CONVOLUTION,
    **PRODUCT,
    **EINSUM,
    **ATTENTION,
    **NORM,
    **POOLING,
    **SHAPE,
    **SHUFFLE,
    **SELECTION,
    **INDEXING,
    **REDUCTION,
    **FOURIER,
    **RECURRENT,
}


def rule_for(call: Call) -> Rule | None:
    """The rule of an operator: its own, or the common one of those that PyTorch tags as pointwise."""
    own = RULES.get(call.name)
    if own is None and is_elementwise(call):
        return elementwise
    return own
