"""The text that names a data set: ``digits``, ``cifar10:DIR``, ``hf:NAME``, ``package.module:factory`` and others."""

from dataclasses import dataclass

from prune2deploy.errors import DataError
from prune2deploy.user_code import is_import_path

IMPORT = "import"

_WITHOUT_PLACE = ("digits", "textures")
_WITH_PLACE = ("cifar10", "cifar100", "imagefolder", "hf")
_GRAMMAR = (
    "write digits, textures, cifar10:DIR, cifar100:DIR, imagefolder:DIR, hf:NAME_OR_DIR or package.module:factory"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Which data, from where. Parsing reads no disk.

    ``kind`` is "digits", "textures", "cifar10", "cifar100", "imagefolder", "hf" or "import"; ``place`` is the folder,
    the name at Hugging Face or ``package.module:factory``, empty for digits and textures.
    """

    kind: str
    place: str = ""

    def __post_init__(self) -> None:
        fits = (
            (self.kind in _WITHOUT_PLACE and not self.place)
            or (self.kind in _WITH_PLACE and bool(self.place))
            or (self.kind == IMPORT and is_import_path(self.place))
        )
        if not fits:
            raise DataError("is not a data spec", where=f"{self.kind}:{self.place}", hint=_GRAMMAR)

    @classmethod
    def parse(cls, text: str) -> "DataSpec":
        """Read a data spec.

        Raises:
            DataError: the text is no data spec.
        """
        kind, _, place = text.strip().partition(":")
        if kind in _WITHOUT_PLACE:
            return cls(kind=kind, place=place)
        if kind in _WITH_PLACE:
            if not place:
                raise DataError("names no folder", where=text, hint=_GRAMMAR)
            return cls(kind=kind, place=place)
        if is_import_path(text.strip()):
            return cls(kind=IMPORT, place=text.strip())
        raise DataError("is not a data spec", where=text or "the empty text", hint=_GRAMMAR)

    def __str__(self) -> str:
        """The canonical text; ``parse`` reads it back."""
        if self.kind == IMPORT:
            return self.place
        return f"{self.kind}:{self.place}" if self.place else self.kind
