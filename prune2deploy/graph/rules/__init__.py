"""How operators move and unite channel labels: one file a family of operators.

``RULES`` maps an ATen operator (its overload packet) to its rule. A new family is one file and one line here.
"""

from prune2deploy.graph.rules import attention, contraction, elementwise, norm, pooling, reduction, selection, shape
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.elementwise import elementwise as elementwise_rule
from prune2deploy.graph.rules.elementwise import is_elementwise

__all__ = ["Call", "Result", "Rule", "rule_for"]

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **contraction.RULES,
    **attention.RULES,
    **norm.RULES,
    **pooling.RULES,
    **shape.RULES,
    **selection.RULES,
    **reduction.RULES,
}


def rule_for(call: Call) -> Rule | None:
    """The rule of an operator: its own, or the common one of those that PyTorch tags as pointwise."""
    own = RULES.get(call.name)
    if own is None and is_elementwise(call):
        return elementwise_rule
    return own
