"""An exponential moving average of the weights, which is cut whenever they are."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.surgery.apply import apply_plan


class WeightAverage:
    """Torch's ``AveragedModel`` of a model, statistics of norms included; it begins with the first step."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        # Only to be made of a model that carries no hooks and no wrapper yet: it is copied whole.
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]

    @property
    def model(self) -> nn.Module:
        """The averaged model, of the shapes of the trained one."""
        module: nn.Module = self._averaged.module
        return module

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self._averaged.update_parameters(model)

    def cut(self, plan: PrunePlan) -> None:
        """Cut it as the trained model is cut."""
        apply_plan(self.model, plan)

    def restart(self, model: nn.Module) -> None:
        """Begin again with ``model``, whose weights are new."""
        self.model.load_state_dict(model.state_dict())
        self._averaged.n_averaged.zero_()

    def copy_to(self, model: nn.Module) -> None:
        """Give ``model`` the averaged weights and statistics."""
        model.load_state_dict(self.model.state_dict())

    def state_dict(self) -> Mapping[str, Any]:
        """What ``load_state_dict`` takes back."""
        state: dict[str, Any] = self._averaged.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict`` of an average of the same shapes."""
        self._averaged.load_state_dict(dict(state))
