"""Which passes over the graph an export asks for, given what the run knows of its images."""

from pathlib import Path

from prune2deploy.errors import InputError
from prune2deploy.export.graph_passes import GraphPasses, Normalization
from prune2deploy.pipeline.requests import ExportRequest


def passes_for(request: ExportRequest, normalization: Normalization | None, run: Path) -> GraphPasses:
    """The passes of one export. ``normalization`` is (mean, standard deviation) of the run's images, None if unknown.

    Raises:
        InputError: normalisation is asked for and the run does not know it.
    """
    if request.normalize and normalization is None:
        raise InputError(
            "the run does not know mean and standard deviation of its images",
            where=f"--normalize, {run}",
            hint="prune with --data, or export without --normalize",
        )
    return GraphPasses(normalize=normalization if request.normalize else None, softmax=request.softmax)
