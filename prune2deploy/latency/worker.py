"""The process that points are timed in: ``python -m prune2deploy.latency.worker SETTING``.

A JSON line with points comes in, lines that tell how far it is go out, and at last one with timings or an expected
error; and so on until the input ends. ``SETTING`` is a JSON object: that of the setting, and the CPUs to be pinned to.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prune2deploy.bench.machine.affinity import pin
from prune2deploy.bench.timed.worker import error_to_document
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import P2DError
from prune2deploy.graph.unit import Unit
from prune2deploy.latency.measuring import time_points
from prune2deploy.latency.points import Point
from prune2deploy.latency.setting import Setting


def main(document: Mapping[str, Any]) -> int:
    """Answer requests until there are no more."""
    setting = Setting(**document["setting"])
    pin(document["cpus"])
    for line in sys.stdin:
        points = [Point(Unit.from_key(key), tuple(widths)) for key, widths in json.loads(line)]
        try:
            timings = time_points(engine_named(setting.engine), points, setting, tell=_tell)
        except P2DError as error:
            _say(error_to_document(error))
        else:
            _say({"timings": [asdict(timing) for timing in timings]})
    return 0


def request_line(points: Sequence[Point]) -> bytes:
    """What ``main`` reads: one line for one request."""
    return (json.dumps([[point.unit.key, point.widths] for point in points]) + "\n").encode()


def _tell(fraction: float) -> None:
    _say({"fraction": fraction})


def _say(document: Mapping[str, Any]) -> None:
    os.write(sys.stdout.fileno(), (json.dumps(document) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
