"""Image networks of timm, an optional package, built without weights."""

from types import ModuleType

from torch import nn

from prune2deploy.errors import ModelError
from prune2deploy.model.sources.source import Arguments, nearest


class TimmSource:
    """``timm.create_model``."""

    def names(self) -> tuple[str, ...]:
        """All architectures of the installed timm, without pretrained tags; empty where it is not installed."""
        try:
            return tuple(sorted(_timm().list_models()))
        except ModelError:
            return ()

    def check(self, name: str) -> None:
        """Refuse unknown architectures. A tag (``resnet50.a1_in1k``) chooses a configuration, never weights."""
        architecture = name.partition(".")[0]
        timm = _timm()
        if not timm.is_model(architecture):
            near = nearest(architecture, timm.list_models())
            raise ModelError(
                f"timm {timm.__version__} has no such model",
                where=f"timm:{name}",
                hint=f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()",
            )

    def build(self, name: str, arguments: Arguments) -> object:
        """Build it without weights."""
        return _timm().create_model(name, pretrained=False, **arguments)

    def input_size(self, name: str, arguments: Arguments, model: nn.Module) -> tuple[int, int] | None:
        """``img_size`` where it was given, else the size that the configuration was trained at."""
        image_size = arguments.get("img_size")
        if isinstance(image_size, int):
            return (image_size, image_size)
        size = image_size or _configuration(model).get("input_size")
        return (int(size[-2]), int(size[-1])) if size else None

    def normalization(self, name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The constants of the configuration."""
        configuration = _configuration(model)
        if "mean" not in configuration or "std" not in configuration:
            return None
        return (tuple(configuration["mean"]), tuple(configuration["std"]))

    def class_count_argument(self, name: str) -> str | None:
        """All of them take it."""
        return "num_classes"

    def input_channels_argument(self, name: str) -> str | None:
        """All of them take it."""
        return "in_chans"

    def training_only_prefixes(self, name: str, arguments: Arguments) -> tuple[str, ...]:
        """Inception v3's auxiliary classifier, which some published weights carry."""
        if name.startswith("inception_v3") and not arguments.get("aux_logits", False):
            return ("AuxLogits.",)
        return ()


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"timm is not installed ({error})", where="timm:", hint="pip install 'prune2deploy[timm]'"
        ) from error
    module: ModuleType = timm
    return module


def _configuration(model: nn.Module) -> dict[str, tuple[float, ...]]:
    return dict(getattr(model, "pretrained_cfg", None) or {})
