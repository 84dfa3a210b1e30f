"""The process that one build runs in: ``python -m prune2deploy.bench.timed.worker REQUEST.json RESULT.json``.

It tells its progress as JSON lines on standard output. An expected error is written to the result file, so that the
parent can raise it as its own.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.machine.affinity import pin
from prune2deploy.bench.timed.build import measure_build
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import P2DError
from prune2deploy.storage import read_json, write_json


def error_to_document(error: P2DError) -> dict[str, Any]:
    """An expected error as a JSON object."""
    return {"error": {"type": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}}


def main(request_path: Path, result_path: Path) -> int:
    """Run one build and write its samples, or the error it ended with, to ``result_path``."""
    job = BuildJob.from_document(read_json(request_path))
    pin(job.cpus)
    try:
        samples = measure_build(job, engine_named(job.request.engine), tell=_tell)
    except P2DError as error:
        write_json(result_path, error_to_document(error))
        return error.exit_code
    write_json(result_path, samples.to_document())
    return 0


def _tell(fraction: float, text: str) -> None:
    os.write(sys.stdout.fileno(), (json.dumps({"fraction": fraction, "text": text}) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
