"""Where architectures come from; one file a source, one line an entry."""

from collections.abc import Mapping

from prune2deploy.model.sources.imported import ImportedSource
from prune2deploy.model.sources.source import Source
from prune2deploy.model.sources.timm import TimmSource
from prune2deploy.model.sources.torchvision import TorchvisionSource
from prune2deploy.model.sources.zoo import ZooSource

SOURCES: Mapping[str, Source] = {
    "zoo": ZooSource(),
    "torchvision": TorchvisionSource(),
    "timm": TimmSource(),
    "import": ImportedSource(),
}
