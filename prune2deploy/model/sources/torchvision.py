"""Classification and segmentation networks of torchvision, built without weights."""

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from prune2deploy.errors import ModelError
from prune2deploy.model.sources.source import Arguments, nearest

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Networks that train with auxiliary heads by default, which are not part of what is deployed.
_AUXILIARY_HEADS: Mapping[str, tuple[str, ...]] = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_SEGMENTATION_AUXILIARY_HEAD = ("aux_classifier.",)


class TorchvisionSource:
    """``torchvision.models``."""

    def names(self) -> tuple[str, ...]:
        """Classification and segmentation; detection, video and quantised networks take other inputs."""
        return tuple(sorted([*torchvision.models.list_models(module=torchvision.models), *_segmentation_names()]))

    def check(self, name: str) -> None:
        """Refuse names outside ``names``."""
        names = self.names()
        if name in torchvision.models.list_models(module=torchvision.models.detection):
            raise ModelError(
                "cannot be exported as a whole: how many objects it finds depends on data",
                where=f"torchvision:{name}",
                hint="in Python, prune its backbone and put it back: "
                "model.backbone = p2d.prune(model.backbone, torch.rand(1, 3, 320, 320), flops=0.5).model",
            )
        if name not in names:
            near = nearest(name, names)
            raise ModelError(
                "is not among torchvision's classification and segmentation models",
                where=f"torchvision:{name}",
                hint=f"did you mean {' or '.join(near)}?" if near else "see torchvision.models.list_models()",
            )

    def build(self, name: str, arguments: Arguments) -> object:
        """Build it without auxiliary heads unless ``arguments`` ask for them."""
        defaults: dict[str, object] = {"weights": None}
        if name in _AUXILIARY_HEADS:
            defaults |= {"aux_logits": False, "init_weights": True}
        if name in _segmentation_names():
            defaults |= {"weights_backbone": None}
        return torchvision.models.get_model(name, **{**defaults, **arguments})

    def input_size(self, name: str, arguments: Arguments, model: nn.Module) -> tuple[int, int] | None:
        """The crop that the default weights were evaluated at; ``image_size`` of vision transformers overrules."""
        if isinstance(size := arguments.get("image_size"), int):
            return (size, size)
        crop = getattr(_preset(name), "crop_size", None)
        return (int(crop[0]), int(crop[-1])) if crop else None

    def normalization(self, name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """ImageNet's constants, which all of torchvision's image weights use."""
        preset = _preset(name)
        return (tuple(preset.mean), tuple(preset.std)) if preset is not None else _IMAGENET

    def class_count_argument(self, name: str) -> str | None:
        """All of them take it."""
        return "num_classes"

    def input_channels_argument(self, name: str) -> str | None:
        """None: torchvision's networks read three channels."""
        return None

    def training_only_prefixes(self, name: str, arguments: Arguments) -> tuple[str, ...]:
        """Auxiliary classifiers, where they are not built."""
        if name in _AUXILIARY_HEADS and not arguments.get("aux_logits", False):
            return _AUXILIARY_HEADS[name]
        if name in _segmentation_names() and not arguments.get("aux_loss"):
            return _SEGMENTATION_AUXILIARY_HEAD
        return ()


def _preset(name: str) -> Any:
    """The preprocessing of the default weights, None for the few networks that have none."""
    default = getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)
    return default.transforms() if default is not None else None


def _segmentation_names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models.segmentation))
