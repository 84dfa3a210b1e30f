"""The process that one engine's memory is measured in.

``python -m prune2deploy.bench.aside.memory_worker REQUEST.json RESULT.json``

As ``bench.timed.worker``: an expected error is written to the result file, so that the parent can raise it as its own.
"""

import sys
from pathlib import Path

from prune2deploy.bench.aside.memory import peak_memory_bytes
from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.machine.affinity import pin
from prune2deploy.bench.timed.worker import error_to_document
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import P2DError
from prune2deploy.storage import read_json, write_json


def main(request_path: Path, result_path: Path) -> int:
    """Measure once and write ``memory_bytes``, or the error it ended with, to ``result_path``."""
    job = BuildJob.from_document(read_json(request_path))
    pin(job.cpus)
    try:
        peak = peak_memory_bytes(job, engine_named(job.request.engine))
    except P2DError as error:
        write_json(result_path, error_to_document(error))
        return error.exit_code
    write_json(result_path, {"memory_bytes": peak})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
