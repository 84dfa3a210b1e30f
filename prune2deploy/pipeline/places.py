"""Paths as a run keeps them: absolute, so that ``--resume`` and ``p2d export`` find them from any folder."""

from pathlib import Path

from prune2deploy.data.spec import DataSpec
from prune2deploy.run import LATEST, RunFolder

_FOLDER_KINDS = ("cifar10", "cifar100", "imagefolder")
_FOLDER_OR_NAME = "hf"


def settled_data(text: str) -> str:
    """A data spec whose folder, if it names one, is absolute.

    Raises:
        DataError: the text is no data spec.
    """
    spec = DataSpec.parse(text)
    folder = Path(spec.place).expanduser()
    if spec.kind in _FOLDER_KINDS or (spec.kind == _FOLDER_OR_NAME and folder.is_dir()):
        return str(DataSpec(kind=spec.kind, place=str(folder.resolve())))
    return str(spec)


def settled_checkpoint(path: Path, *, resumed: RunFolder | None) -> Path:
    """The file or folder that ``path`` meant when the run was begun.

    ``latest`` has moved on to the resumed run itself since then, so a path through it is taken from the run's options.
    """
    through_latest = any(place.name == LATEST and place.is_symlink() for place in (path, *path.parents))
    if resumed is not None and through_latest:
        return Path(resumed.manifest.options["checkpoint"])
    return path
