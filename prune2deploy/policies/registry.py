"""The methods that prune while they train: one entry each. ``docs/methods.md`` describes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prune2deploy.graph.rectifiers import activations_of
from prune2deploy.graph.trace import Trace
from prune2deploy.policies.activation_density import ActivationDensity, ActivationDensityOptions
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.early import Early, EarlyOptions
from prune2deploy.policies.policy import Policy
from prune2deploy.policies.prunetrain import PruneTrain, PruneTrainOptions
from prune2deploy.policies.single_shot import SingleShot, SingleShotOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a policy is made, and what it takes.

    ``policy`` is called with the trace of the dense model, in which what may not leave is frozen, an ``Aim`` and a
    record of type ``options``. ``needs_target``: without a budget there is nothing that it could do. ``advice`` is what
    the user can do when it falls short.
    """

    policy: Callable[[Trace, Aim, Any], Policy]
    options: Callable[..., Any]
    needs_target: bool
    advice: str


METHODS: Mapping[str, Method] = {
    "3sp": Method(
        policy=lambda traced, aim, options: SingleShot(traced.graph, aim, options),
        options=SingleShotOptions,
        needs_target=True,
        advice="set a target that can be reached",
    ),
    "epi": Method(
        policy=lambda traced, aim, options: Early(traced.graph, aim, options),
        options=EarlyOptions,
        needs_target=True,
        advice="train for more epochs, or set --prune-epoch",
    ),
    "prunetrain": Method(
        policy=lambda traced, aim, options: PruneTrain(traced.graph, aim, options),
        options=PruneTrainOptions,
        needs_target=False,
        advice="raise --penalty-ratio, or train for more steps: more --epochs, or a smaller --batch-size",
    ),
    "activation-density": Method(
        policy=lambda traced, aim, options: ActivationDensity(
            traced.graph, aim, options, activations=activations_of(traced)
        ),
        options=ActivationDensityOptions,
        needs_target=False,
        advice="train for more epochs, or let rounds end sooner with a smaller --plateau-window",
    ),
}


def policy_named(name: str, traced: Trace, aim: Aim, options: Mapping[str, Any]) -> Policy:
    """The policy of a method, for one training; ``options`` are fields of its options record.

    Raises:
        InputError: it needs a target and ``aim`` has none, or an option is out of its range.
    """
    method = METHODS[name]
    return method.policy(traced, aim, method.options(**options))
