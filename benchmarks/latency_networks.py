"""The networks of ``latency.py``; a short training on digits gives their weights, so that importance means something.

The images are scikit-learn's digits, enlarged and repeated over three channels, since torchvision's architectures want
that; on textures most of these learn nothing in the few epochs that a CPU allows. Latency is that of ImageNet's
3x224x224, for which they were made: it does not depend on the weights.
"""

from pathlib import Path

import torch
from torch import nn

from prune2deploy.data.load import load_data
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

NETWORKS = {
    "resnet50": "torchvision:resnet50?num_classes=10",
    "mobilenet_v2": "torchvision:mobilenet_v2?num_classes=10",
    "efficientnet_b0": "torchvision:efficientnet_b0?num_classes=10",
    "densenet121": "torchvision:densenet121?num_classes=10",
    "regnet_y_400mf": "torchvision:regnet_y_400mf?num_classes=10",
    "convnext_tiny": "torchvision:convnext_tiny?num_classes=10",
}
INPUT_SHAPE = (3, 224, 224)
TRAINED_AT = (3, 32, 32)
RECIPE = TrainingRecipe(epochs=6, batch_size=32, optimizer="adamw", learning_rate=1e-3, seed=0)


def build_network(name: str) -> nn.Module:
    """The network of that name with random weights, in evaluation mode."""
    return build_model(ModelSpec.parse(NETWORKS[name]), seed=0).eval()


def trained(name: str, folder: Path) -> nn.Module:
    """The network of that name in evaluation mode; trained once, and kept in ``folder``."""
    model = build_network(name)
    file = folder / f"{name}.pt"
    if file.is_file():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    result = train(model, load_data("digits", input_shape=TRAINED_AT), RECIPE)
    print(f"{name}: {result.accuracy:.3f} of digits right after {RECIPE.epochs} epochs", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()
