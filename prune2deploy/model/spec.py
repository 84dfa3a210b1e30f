"""From a model's name to a module: the zoo's, torchvision's, timm's, or what a user's own factory returns.

    spec = ModelSpec.parse("timm:resnet50?num_classes=10&in_chans=1")
    model = build_model(spec, seed=0)

Parsing executes nothing and imports no torch; the sources (``model.sources``) are imported when a model is built.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from prune2deploy.errors import ModelError
from prune2deploy.user_code import is_import_path

if TYPE_CHECKING:
    from torch import nn

    from prune2deploy.model.sources.source import Source

ZOO = "zoo"
TORCHVISION = "torchvision"
TIMM = "timm"
IMPORT = "import"

InputShape = tuple[int, int, int]

_LIBRARIES = (ZOO, TORCHVISION, TIMM)
_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*")
_ARGUMENT_NAME = re.compile(r"[^\W\d]\w*")
_GRAMMAR = (
    "write NAME, torchvision:NAME, timm:NAME or package.module:factory, with arguments as ?num_classes=10&width=2"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelSpec:
    """Which architecture, from where, with which arguments.

    ``source`` is "zoo", "torchvision", "timm" or "import"; for "import", ``name`` is ``package.module:factory``.
    ``arguments`` are keyword arguments of the factory, as JSON values. Two specs are equal where their texts are.
    """

    source: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.source in _LIBRARIES
        if not (known and _NAME.fullmatch(self.name)) and not (self.source == IMPORT and is_import_path(self.name)):
            raise ModelError(f"{self.source}:{self.name} is not a model spec", hint=_GRAMMAR)
        for name in self.arguments:
            if not _ARGUMENT_NAME.fullmatch(name):
                raise ModelError(f"{name!r} is not the name of an argument", where=self.name, hint=_GRAMMAR)

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """Read a spec; a bare name is one of the zoo. Argument values are JSON where they can be, else strings.

        Raises:
            ModelError: the text is no spec. Whether the architecture exists shows when it is built.
        """
        path, has_arguments, argument_text = text.strip().partition("?")
        if has_arguments and not argument_text:
            raise ModelError("the question mark is followed by no argument", where=text, hint=_GRAMMAR)
        arguments: dict[str, Any] = {}
        for assignment in argument_text.split("&") if argument_text else ():
            name, equals, value = assignment.partition("=")
            if not equals or not _ARGUMENT_NAME.fullmatch(name):
                raise ModelError(f"{assignment!r} is not of the form name=value", where=text, hint=_GRAMMAR)
            if name in arguments:
                raise ModelError(f"argument {name!r} is given twice", where=text, hint="give it once")
            arguments[name] = _value_from_text(value)
        prefix, colon, rest = path.partition(":")
        if not colon and _NAME.fullmatch(path):
            return cls(source=ZOO, name=path, arguments=arguments)
        if prefix in _LIBRARIES and _NAME.fullmatch(rest):
            return cls(source=prefix, name=rest, arguments=arguments)
        if prefix not in _LIBRARIES and is_import_path(path):
            return cls(source=IMPORT, name=path, arguments=arguments)
        raise ModelError("is not a model spec", where=text or "the empty text", hint=_GRAMMAR)

    def __str__(self) -> str:
        """The canonical text: explicit source, arguments in alphabetical order. ``parse`` reads it back."""
        path = self.name if self.source == IMPORT else f"{self.source}:{self.name}"
        arguments = "&".join(f"{name}={_text_of_value(value)}" for name, value in sorted(self.arguments.items()))
        return f"{path}?{arguments}" if arguments else path

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, ModelSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def with_arguments(self, **arguments: Any) -> "ModelSpec":
        """The same architecture with these arguments added or replaced."""
        return ModelSpec(source=self.source, name=self.name, arguments={**self.arguments, **arguments})


def build_model(spec: ModelSpec, *, seed: int | None = None) -> "nn.Module":
    """Build a randomly initialised model, in training mode as torch makes every module.

    With a ``seed`` the weights are the same each time and the caller's random state is left as it was; without
    one they are drawn from that state. Under ``torch.device("meta")`` most architectures build as shapes alone, but
    not those whose constructor computes with tensors (torchvision's RegNets); ``checkpoint.skeleton`` builds all.

    Raises:
        ModelError: the name is unknown (the message gives the nearest ones), the package is not installed, an
            argument does not fit, or the user's factory fails or returns no ``nn.Module``.
    """
    from prune2deploy.model.sources.build import build

    return build(_source_of(spec), name=spec.name, arguments=spec.arguments, where=str(spec), seed=seed)


def default_input_shape(spec: ModelSpec, model: "nn.Module") -> InputShape:
    """The (channels, height, width) that ``model``, built from ``spec``, is meant for.

    Height and width are those of the timm configuration, of torchvision's default weights or of the zoo (32x32);
    224x224 where none is known. Channels are those of the first convolution, 3 where there is none.
    """
    from prune2deploy.model.sources.source import input_channels_of

    height, width = _source_of(spec).input_size(spec.name, spec.arguments, model) or (224, 224)
    return (input_channels_of(model) or 3, height, width)


def default_normalization(spec: ModelSpec, model: "nn.Module") -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, on images in [0, 1], that published weights of this architecture expect.

    One value a channel, for three channels; None where the source prescribes none (zoo, import path).
    """
    return _source_of(spec).normalization(spec.name, model)


def architecture_names(source: str) -> tuple[str, ...]:
    """Names that "zoo", "torchvision" (classification and segmentation) or "timm" can build, sorted.

    Empty for "import", and for "timm" where that package is not installed.
    """
    return _source_named(source).names()


def training_only_prefixes(spec: ModelSpec) -> tuple[str, ...]:
    """Prefixes of ``state_dict`` keys of heads that serve training only, and that ``spec`` does not build.

    Published checkpoints carry them (GoogLeNet's ``aux1.``, Inception's ``AuxLogits.``); the deployed network has
    no use for them. Empty where an argument of the spec asks for them.
    """
    return _source_of(spec).training_only_prefixes(spec.name, spec.arguments)


def class_count_argument(spec: ModelSpec) -> str | None:
    """Name of the argument that sets the number of classes, None where the factory has none."""
    return _source_of(spec).class_count_argument(spec.name)


def input_channels_argument(spec: ModelSpec) -> str | None:
    """Name of the argument that sets the number of input channels, None where the factory has none."""
    return _source_of(spec).input_channels_argument(spec.name)


def fit_to_data(spec: ModelSpec, *, class_count: int, input_channels: int) -> ModelSpec:
    """The same architecture for data of ``class_count`` classes and ``input_channels`` channels.

    Arguments are added only where they are needed: the class count always, the channels where they are not 3. A user's
    factory without such arguments is left as it is; whether its output fits shows when it runs.

    Raises:
        ModelError: the spec itself says another number, or torchvision's fixed three channels do not fit.
    """
    wanted = {}
    if class_argument := class_count_argument(spec):
        wanted[class_argument] = class_count
    channels_argument = input_channels_argument(spec)
    if channels_argument and (input_channels != 3 or channels_argument in spec.arguments):
        wanted[channels_argument] = input_channels
    elif spec.source == TORCHVISION and input_channels != 3:
        raise ModelError(
            f"torchvision's models read 3 channels, the data has {input_channels}",
            where=str(spec),
            hint="pass --input 3xHxW so that the channel is repeated, or choose a zoo or timm model",
        )
    for argument, value in wanted.items():
        if spec.arguments.get(argument, value) != value:
            raise ModelError(
                f"says {argument}={spec.arguments[argument]}, but the data has {value}",
                where=str(spec),
                hint=f"drop {argument} from the spec, or choose other data",
            )
    return spec.with_arguments(**wanted)


def _source_of(spec: ModelSpec) -> "Source":
    return _source_named(spec.source)


def _source_named(source: str) -> "Source":
    from prune2deploy.model.sources import SOURCES

    if source not in SOURCES:
        raise ModelError(f"{source!r} is not a source of models", hint=f"choose from {', '.join(SOURCES)}")
    return SOURCES[source]


def _value_from_text(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _text_of_value(value: Any) -> str:
    """Strings stand bare where that reads back as the same string; ``&`` would end the argument, so it is escaped."""
    if isinstance(value, str) and value == _value_from_text(value) and "&" not in value and value == value.strip():
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":")).replace("&", "\\u0026")
