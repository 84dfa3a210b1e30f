"""The networks of the zoo with random weights: the smallest of every timm file, and all of torchvision's that classify.

Segmentation and video models of torchvision are among them; quantised ones, detectors and optical flow are not.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

ARCHITECTURES = Path(__file__).parent / "zoo_architectures.json"
SIDES = {"inception_v3": (299, 299)}
VIDEO_SHAPES = {
    "mvit_v1_b": (3, 16, 224, 224), "mvit_v2_s": (3, 16, 224, 224), "s3d": (3, 16, 224, 224),
    "swin3d_t": (3, 8, 112, 112), "swin3d_s": (3, 8, 112, 112), "swin3d_b": (3, 8, 112, 112),
}  # fmt: skip


def architectures() -> Iterator[str]:
    """``timm:name``, ``torchvision:name`` and so on, in a fixed order."""
    for source, names in json.loads(ARCHITECTURES.read_text()).items():
        for name in names:
            yield f"{source}:{name}"


def built(model: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in evaluation mode, and an input of batch 1 for it."""
    source, _, name = model.partition(":")
    torch.manual_seed(0)
    if source == "timm":
        import timm

        made = timm.create_model(name, pretrained=False)
        shape = made.default_cfg["input_size"]
    else:
        import torchvision

        auxiliary = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        backbone = {"weights_backbone": None} if "segmentation" in source else {}
        made = torchvision.models.get_model(name, weights=None, **auxiliary, **backbone)
        shape = VIDEO_SHAPES.get(name, (3, 16, 112, 112)) if "video" in source else (3, *SIDES.get(name, (224, 224)))
    return made.eval(), (torch.randn(1, *shape),)
