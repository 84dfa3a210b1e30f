"""Which passes over the graph an export asks for, given what the run knows of its images."""

from pathlib import Path

from prune2deploy.errors import InputError
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses, Normalization
from prune2deploy.pipeline.requests import ExportRequest


def passes_for(request: ExportRequest, normalization: Normalization | None, run: Path) -> GraphPasses:
    """The passes of one export. ``normalization`` is (mean, standard deviation) of the run's images, None if unknown.

    Raises:
        InputError: normalisation is asked for, or needed, and the run does not know it.
    """
    bytes_in = request.input_format == BYTE_IMAGES
    if (request.normalize or bytes_in) and normalization is None:
        option = f"--input {BYTE_IMAGES}" if bytes_in else "--normalize"
        raise InputError(
            "the run does not know mean and standard deviation of its images",
            where=f"{option}, {run}",
            hint="prune with --data, or export without it",
        )
    return GraphPasses(
        normalize=normalization if request.normalize or bytes_in else None,
        softmax=request.softmax,
        top_k=request.top_k,
        input_format=request.input_format,
        source_size=request.source_size,
        batch=request.batch,
    )
