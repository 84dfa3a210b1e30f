"""The networks of ``engines.py`` and ``gpu_engines.py``: real classifiers of digits without a download or a training.

Weights are random; batch norms have the statistics of real images, so that activations stay within the range of half
precision, and the last layer is fitted to the digits by ridge regression. So predictions have margins, as those of
trained networks have, and the agreement of int8 with fp32 means something, which it does not for random outputs.
"""

from collections.abc import Mapping

NETWORKS: Mapping[str, str] = {
    "resnet18": "torchvision:resnet18",
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "densenet121": "torchvision:densenet121",
    "convnext_tiny": "torchvision:convnext_tiny",
    "vit_tiny": "timm:vit_tiny_patch16_224",
}
DATA = "digits"
FLOPS = 0.33
EVALUATION = "evaluation.npz"
CALIBRATION = "calibration.npy"
SUMMARY = "network.json"
