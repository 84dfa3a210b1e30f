"""What every loader is asked for."""

from dataclasses import dataclass

from prune2deploy.data.splits import Normalization, Shape
from prune2deploy.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """Which data, and how to preprocess it; see ``data.load.load_data`` for the fields.

    ``name`` is the canonical spec, for messages; ``place`` what stands behind its colon.
    """

    name: str
    place: str
    input_shape: Shape | None = None
    augment: bool = True
    normalization: Normalization | None = None
    progress: Progress = SILENT
