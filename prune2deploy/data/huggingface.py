"""Image classification sets of Hugging Face: by name, or from a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from prune2deploy.data.pictures import check_picture, picture_splits
from prune2deploy.data.request import DataRequest
from prune2deploy.data.splits import DataSplits, class_names_from
from prune2deploy.errors import DataError

_EVALUATION = ("validation", "valid", "val", "test")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
_SAVED_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")


class TablePictures:
    """Rows of a table with a column of pictures."""

    def __init__(self, table: Any, *, image_column: str, labels: Sequence[int], name: str) -> None:
        self._table = table.select_columns([image_column])
        self._image_column = image_column
        self._name = name
        self.labels: Sequence[int] = labels

    def read(self, index: int) -> Image.Image:
        """Decode one row."""
        where = f"{self._name}, row {index}"
        try:
            picture = self._table[index][self._image_column]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise DataError(
                f"is not a readable picture ({reason})", where=where, hint="repair or remove the row"
            ) from error
        if not isinstance(picture, Image.Image):
            raise DataError("holds no picture", where=where, hint="remove the row")
        return check_picture(picture, where=where)


def hugging_face(request: DataRequest) -> DataSplits:
    """A set saved with ``save_to_disk``, a folder or a name that ``load_dataset`` reads.

    Splits: ``train``, and the first of validation, valid, val and test that is there, else a fifth of every class.
    Columns: the one of pictures, and the one of class labels.

    Raises:
        DataError: the package is not installed, the set cannot be loaded, or its columns are not clear.
    """
    tables = _load(request.place, name=request.name)
    train_split = "train" if "train" in tables else next(iter(tables))
    evaluation_split = next((split for split in _EVALUATION if split in tables and split != train_split), None)
    train, class_names = _pictures(tables[train_split], name=f"{request.name}, split {train_split}", class_names=None)
    evaluation = None
    if evaluation_split is not None:
        evaluation, _ = _pictures(
            tables[evaluation_split], name=f"{request.name}, split {evaluation_split}", class_names=class_names
        )
    return picture_splits(request, train=train, evaluation=evaluation, class_names=class_names)


def _pictures(table: Any, *, name: str, class_names: tuple[str, ...] | None) -> tuple[TablePictures, tuple[str, ...]]:
    """The pictures of one split; classes are those of the training split, found there if None is given."""
    label_column = _label_column(table.features, name=name)
    raw_labels = list(table[label_column])
    declared = getattr(table.features[label_column], "names", None)
    names = class_names or (tuple(declared) if declared else class_names_from(raw_labels))
    texts = raw_labels if declared else [str(label) for label in raw_labels]
    numbers = range(len(names)) if declared else names
    number_of = {label: number for number, label in enumerate(numbers)}
    unknown = sorted({str(label) for label in texts if label not in number_of})
    if unknown:
        raise DataError(
            f"holds labels that are no class of the training split ({', '.join(unknown[:5])})",
            where=name,
            hint="rename or remove the split if it has no labels",
        )
    labels = [number_of[label] for label in texts]
    return TablePictures(table, image_column=_image_column(table.features, name=name), labels=labels, name=name), names


def _load(place: str, *, name: str) -> Mapping[str, Any]:
    """Splits by name."""
    library = _datasets()
    folder = Path(place).expanduser()
    try:
        if any((folder / mark).is_file() for mark in _SAVED_MARKS):
            loaded = library.load_from_disk(str(folder))
        else:
            loaded = library.load_dataset(str(folder) if folder.is_dir() else place)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, library.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise DataError(
            f"cannot be loaded ({type(error).__name__}: {reason})",
            where=name,
            hint="check the name or the folder, and the network if it is to be downloaded",
        ) from error
    return dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}


def _image_column(features: Mapping[str, Any], *, name: str) -> str:
    image_type = _datasets().Image
    columns = [column for column, feature in features.items() if isinstance(feature, image_type)]
    if len(columns) != 1:
        raise DataError(
            f"has {len(columns)} columns of pictures among {', '.join(features)}; one is needed",
            where=name,
            hint="name a package.module:factory that chooses",
        )
    return columns[0]


def _label_column(features: Mapping[str, Any], *, name: str) -> str:
    """The only column of class labels, else the first with a usual name."""
    label_type = _datasets().ClassLabel
    typed = [column for column, feature in features.items() if isinstance(feature, label_type)]
    if len(typed) == 1:
        return typed[0]
    usual = [column for column in _LABEL_COLUMNS if column in (typed or features)]
    if not usual:
        raise DataError(
            f"has no clear column of labels among {', '.join(features)}",
            where=name,
            hint="name it 'label', or name a package.module:factory that chooses",
        )
    return usual[0]


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"the package datasets is not installed ({error})",
            where="hf:",
            hint="pip install 'prune2deploy[huggingface]'",
        ) from error
    module: ModuleType = datasets
    return module
