"""Folders of pictures, one folder a class, as ``ImageFolder`` of torchvision reads them; hidden ones are no classes."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from prune2deploy.data.pictures import check_picture, picture_splits
from prune2deploy.data.request import DataRequest
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import DataError
from prune2deploy.progress import Progress

_TRAIN = "train"
_EVALUATION = ("val", "valid", "validation", "test")
_LAYOUT = "lay it out as DIR/train/CLASS/*.png and DIR/val/CLASS/*.png, or as DIR/CLASS/*.png"
_HEADERS_CHECKED = 10_000


class FolderPictures:
    """Picture files with their labels."""

    def __init__(self, files: Sequence[tuple[str, int]]) -> None:
        self._paths = [path for path, _ in files]
        self.labels: Sequence[int] = [label for _, label in files]

    def read(self, index: int) -> Image.Image:
        """Decode one file."""
        path = self._paths[index]
        try:
            with Image.open(path) as picture:
                picture.load()
                return check_picture(picture, where=path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable(path, error) from error

    def check_headers(self, *, progress: Progress) -> None:
        """Make sure that the first files are pictures at all, before anything is trained on them.

        Raises:
            DataError: one is not; what is damaged behind the header shows when it is read.
        """
        paths = self._paths[:_HEADERS_CHECKED]
        with progress.task("checking pictures", total=len(paths)) as task:
            for path in paths:
                try:
                    with Image.open(path):
                        task.advance()
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    raise _unreadable(path, error) from error


def image_folder(request: DataRequest) -> DataSplits:
    """DIR/train and DIR/val (or valid, validation, test), or a single folder of classes.

    From a single folder a fifth of every class is set aside for evaluation, always the same.

    Raises:
        DataError: there is no such folder, fewer than two classes, a class without pictures, other classes in
            evaluation than in training, or a file that is no picture.
    """
    root = Path(request.place).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", where=request.name, hint=_LAYOUT)
    training_folder = root / _TRAIN if _holds_folders(root / _TRAIN) else root
    evaluation_folder = next((root / part for part in _EVALUATION if _holds_folders(root / part)), None)
    train, class_names = _read_folder(training_folder, name=request.name)
    train.check_headers(progress=request.progress)
    evaluation = None
    if training_folder != root and evaluation_folder is not None:
        evaluation, evaluation_names = _read_folder(evaluation_folder, name=request.name)
        if evaluation_names != class_names:
            differing = sorted(set(evaluation_names) ^ set(class_names))
            raise DataError(
                f"{_TRAIN} and {evaluation_folder.name} hold different classes ({', '.join(differing[:5])})",
                where=request.name,
                hint="give both the same class folders",
            )
        evaluation.check_headers(progress=request.progress)
    return picture_splits(request, train=train, evaluation=evaluation, class_names=class_names)


def _read_folder(folder: Path, *, name: str) -> tuple[FolderPictures, tuple[str, ...]]:
    class_names = tuple(sorted(path.name for path in _folders_in(folder)))
    if len(class_names) < 2:
        raise DataError(
            f"{folder} holds {len(class_names)} class folders, at least two are needed", where=name, hint=_LAYOUT
        )
    try:
        files = make_dataset(
            folder, {class_name: number for number, class_name in enumerate(class_names)}, IMG_EXTENSIONS
        )
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({str(error).splitlines()[0]})", where=name, hint=_LAYOUT) from error
    return FolderPictures(files), class_names


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and bool(_folders_in(folder))


def _unreadable(path: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return DataError(f"is not a readable picture ({reason})", where=path, hint="repair or remove the file")
