"""The project's own CIFAR-style networks."""

from torch import nn

from prune2deploy.errors import ModelError
from prune2deploy.model.sources.source import Arguments, nearest
from prune2deploy.model.zoo import INPUT_SIZE, ZOO


class ZooSource:
    """``prune2deploy.model.zoo``."""

    def names(self) -> tuple[str, ...]:
        """All entries of the zoo."""
        return tuple(sorted(ZOO))

    def check(self, name: str) -> None:
        """Refuse names that are not in the zoo, pointing at the library that has them."""
        if name in ZOO:
            return
        raise ModelError("is not in the zoo", where=name, hint=self._advice(name))

    def build(self, name: str, arguments: Arguments) -> object:
        """Call the entry's factory."""
        return ZOO[name](**arguments)

    def input_size(self, name: str, arguments: Arguments, model: nn.Module) -> tuple[int, int] | None:
        """The size of CIFAR's images."""
        return INPUT_SIZE

    def normalization(self, name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """None: the zoo has no published weights."""
        return None

    def class_count_argument(self, name: str) -> str | None:
        """Every entry takes it."""
        return "num_classes"

    def input_channels_argument(self, name: str) -> str | None:
        """Every entry takes it."""
        return "in_channels"

    def training_only_prefixes(self, name: str, arguments: Arguments) -> tuple[str, ...]:
        """None: no entry has an auxiliary head."""
        return ()

    def _advice(self, name: str) -> str:
        from prune2deploy.model.sources.timm import TimmSource
        from prune2deploy.model.sources.torchvision import TorchvisionSource

        for library, names in (("torchvision", TorchvisionSource().names()), ("timm", TimmSource().names())):
            if name in names:
                return f"{library} has one: write {library}:{name}"
        if near := nearest(name, ZOO):
            return f"did you mean {' or '.join(near)}?"
        if near := nearest(name, TorchvisionSource().names()):
            return f"did you mean {' or '.join(f'torchvision:{other}' for other in near)}?"
        return f"the zoo has {', '.join(self.names())}; prefix other names with torchvision: or timm:"
