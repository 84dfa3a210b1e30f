"""What the manifest of a run keeps of a pruning."""

from dataclasses import asdict
from typing import Any

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.cutting import Cut, CutChoices, inexact_cuts, layer_widths
from prune2deploy.pipeline.frozen import frozen_rows
from prune2deploy.pipeline.making import PRUNED


def pruning_record(whole: Channels, restricted: Channels, cut: Cut, choices: CutChoices) -> dict[str, Any]:
    """The plan, from which a run can be resumed, and what it does; a JSON object.

    ``whole`` are all channels of the model, ``restricted`` those that were allowed to leave.
    """
    graph, plan = whole.graph, cut.plan
    kept = mask_from_plan(graph, plan)
    achieved = {
        "flops": graph.cost.flops(kept) / max(graph.cost.dense_flops, 1),
        "parameters": graph.cost.parameters(kept) / max(graph.cost.dense_parameters, 1),
    }
    if choices.budget is not None:
        # Memory and latency are priced over the channels that were allowed to leave.
        achieved |= choices.budget.achieved(restricted.graph.cost, mask_from_plan(restricted.graph, plan))
    return {
        "method": choices.method,
        "criterion": choices.method,
        "backend": whole.backend,
        "attention": whole.traced.attention.value,
        "ranking": choices.ranking,
        "targets": dict(plan.provenance["targets"]),
        "achieved": achieved,
        "alignment": plan.provenance["alignment"],
        "proof_relative_error": cut.proof.relative_error,
        "layers": layer_widths(graph, {PRUNED: kept}),
        "inexact": inexact_cuts(graph, kept),
        "plan": plan.to_document(),
        "frozen": [asdict(row) for row in frozen_rows(restricted.graph)],
    }
