"""What every data set becomes: three sets of samples, the classes and the preprocessing applied."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from prune2deploy.errors import DataError

Shape = tuple[int, int, int]


class Samples(Dataset[tuple[Tensor, int]], ABC):
    """Preprocessed samples: a float32 image of shape (C, H, W) and an integer label.

    Picklable, so that a loader's workers can read them. What is random in them comes from torch's global generator
    alone, so that restoring that generator's state repeats it.
    """

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One sample.

        Raises:
            DataError: it cannot be read; the message names the file or the row.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """Mean and standard deviation of each channel, of images in [0, 1]: the network reads (image - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise DataError(
                f"normalization by mean {self.mean} and std {self.std} is not possible",
                hint="give one mean and one positive std for each channel",
            )

    def for_channels(self, channels: int) -> "Normalization":
        """The same constants for another number of channels: repeated from one, or averaged into one."""
        if channels == len(self.mean):
            return self
        count = len(self.mean)
        mean, std = sum(self.mean) / count, sum(self.std) / count
        return Normalization(mean=(mean,) * channels, std=(std,) * channels)


IMAGENET_NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplits:
    """A data set, ready for training and evaluation.

    ``train`` is augmented where that was asked for; ``calibration`` is the same samples without it; ``evaluation``
    is never trained on. ``input_shape`` is (channels, height, width). ``normalization`` is None only where the user's
    own code preprocesses and does not say how.
    """

    name: str
    train: Dataset[tuple[Tensor, int]]
    evaluation: Dataset[tuple[Tensor, int]]
    calibration: Dataset[tuple[Tensor, int]]
    class_names: tuple[str, ...]
    input_shape: Shape
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            found = ", ".join(self.class_names) or "none"
            raise DataError(
                f"has fewer than two classes ({found})",
                where=self.name,
                hint="a classifier needs at least two; check the folder or the label column",
            )

    @property
    def class_count(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def check_fits(splits: DataSplits, output_count: int) -> None:
    """Make sure that a model with ``output_count`` outputs can be trained on these classes.

    Raises:
        DataError: the numbers differ.
    """
    if output_count != splits.class_count:
        raise DataError(
            f"has {splits.class_count} classes, but the model has {output_count} outputs",
            where=splits.name,
            hint=f"choose other data, or a model with num_classes={splits.class_count}",
        )


def check_input_shape(shape: Shape, *, name: str) -> None:
    """Make sure that pictures can be brought to ``shape``.

    Raises:
        DataError: it has other than 1 or 3 channels, or an empty side.
    """
    channels, height, width = shape
    if channels not in (1, 3) or height < 1 or width < 1:
        raise DataError(
            f"pictures cannot be brought to {channels}x{height}x{width}",
            where=name,
            hint="images have 1 or 3 channels; name a package.module:factory for other inputs",
        )


def class_names_from(labels: Sequence[object]) -> tuple[str, ...]:
    """Distinct labels as text, in order."""
    return tuple(str(label) for label in sorted(set(labels), key=lambda label: (isinstance(label, str), label)))
