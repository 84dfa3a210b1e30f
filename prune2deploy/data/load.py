"""From a data spec to samples."""

from collections.abc import Callable, Mapping

from prune2deploy.data.cifar import cifar10, cifar100
from prune2deploy.data.digits import digits
from prune2deploy.data.folders import image_folder
from prune2deploy.data.huggingface import hugging_face
from prune2deploy.data.imported import imported_data
from prune2deploy.data.request import DataRequest
from prune2deploy.data.spec import IMPORT, DataSpec
from prune2deploy.data.splits import DataSplits, Normalization, Shape
from prune2deploy.data.textures import textures
from prune2deploy.progress import SILENT, Progress

LOADERS: Mapping[str, Callable[[DataRequest], DataSplits]] = {
    "digits": digits,
    "textures": textures,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagefolder": image_folder,
    "hf": hugging_face,
    IMPORT: imported_data,
}


def load_data(
    spec: str,
    *,
    input_shape: Shape | None = None,
    augment: bool = True,
    normalization: Normalization | None = None,
    progress: Progress = SILENT,
) -> DataSplits:
    """Read a data set and bring it to ``input_shape`` (channels, height, width), by default its own.

    Images are resized, and their channels repeated or averaged, as the shape asks. ``augment`` concerns the training
    samples alone. ``normalization`` replaces the data set's own constants, for weights that expect others; it is
    adapted to the number of channels.

    Raises:
        DataError: the spec is wrong, or the data cannot be read or brought to this shape.
    """
    parsed = DataSpec.parse(spec)
    return LOADERS[parsed.kind](
        DataRequest(
            name=str(parsed),
            place=parsed.place,
            input_shape=input_shape,
            augment=augment,
            normalization=normalization,
            progress=progress,
        )
    )
