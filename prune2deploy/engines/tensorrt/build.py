"""Serialized engines from ONNX files: one way for TensorRT 10, TensorRT 11 and TensorRT for RTX.

The three share a Python API; ``library`` is whichever of them was imported. Networks are strongly typed: the
ONNX file says which type each layer has, and no builder flag changes it. TF32 alone is a flag.
"""

import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.engines.tensorrt.library import last_error, listening
from prune2deploy.engines.tensorrt.monitor import BuildWatch, progress_monitor
from prune2deploy.engines.tensorrt.network import ParsedNetwork, blamed_node, parsed_network
from prune2deploy.engines.tensorrt.settings import configuration_for
from prune2deploy.engines.tensorrt.shapes import Shapes, shapes_for
from prune2deploy.engines.tensorrt.timing_cache import kept_timings
from prune2deploy.errors import EngineError
from prune2deploy.progress import Progress

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializedEngine:
    """A built engine as bytes. ``details`` holds counts of the parsed network's layers by type and output type."""

    content: bytes
    shapes: Shapes
    build_seconds: float
    details: Mapping[str, Any]


def serialized_from_onnx(
    library: Any,
    name: str,
    file: OnnxFile,
    options: BuildOptions,
    *,
    has_gpu: bool,
    timings: Path | None,
    progress: Progress,
) -> SerializedEngine:
    """Parse, give each batch size and each range its profile, build and serialize.

    A network with a fixed batch is built as it is. ``timings`` is the file of kept kernel timings, None to keep none.
    Ctrl-C ends the build at its next step.

    Raises:
        EngineError: an operator is not supported (named), an option is not, the build fails, or a fixed batch is not
            the one asked for.
        InputError: the library cannot read the file, or an option asks for what does not exist.
    """
    started = time.perf_counter()
    with listening(library) as logger, ExitStack() as stack:
        shapes = shapes_for(file, options, name)
        parsed = parsed_network(library, name, file.path, logger)
        configuration = configuration_for(library, name, parsed, options, shapes, logger, has_gpu=has_gpu)
        task = stack.enter_context(progress.task(f"building {file.path.stem} for {name}", total=1))
        if timings is not None:
            stack.enter_context(kept_timings(configuration, timings, progress))
        watch = BuildWatch(task)
        monitor = progress_monitor(library, watch)  # held here, since the configuration does not
        configuration.progress_monitor = monitor
        serialized = _watched_build(parsed, configuration, watch)
        if serialized is None:
            raise _failure(name, file.path, options, last_error(logger, "it gave no reason"))
        return SerializedEngine(
            content=bytes(serialized),
            shapes=shapes,
            build_seconds=time.perf_counter() - started,
            details=parsed.details(),
        )


def _watched_build(parsed: ParsedNetwork, configuration: Any, watch: BuildWatch) -> Any:
    """Build in a thread of its own, since Python sees Ctrl-C only in the main thread, and only outside the library."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(parsed.builder.build_serialized_network, parsed.network, configuration)
        try:
            while not wait((future,), timeout=_LOOK_SECONDS).done:
                pass
        except BaseException:
            watch.stop()
            raise
    if watch.failure is not None:
        raise watch.failure
    return future.result()


def _failure(name: str, path: Path, options: BuildOptions, reason: str) -> EngineError:
    hint = "try another --precision or a smaller --batch"
    if options.tensorrt.version_compatible and "lean" in reason:
        return EngineError(
            f"{name} cannot build it, since its lean runtime is not installed",
            where="--version-compatible",
            hint="leave it out",
        )
    if options.tensorrt.workspace_bytes is not None and "workspace" in reason:
        hint = "allow more with --workspace"
    target = re.search(r"\bSM ?(\d+)(\d)\b", reason)
    if options.tensorrt.compute_capabilities and target:
        hint = f"leave {target[1]}.{target[2]} out of --compute-capability"
    what = blamed_node(reason, path) or "an engine"
    return EngineError(f"{name} could not build {what} ({reason})", where=str(path), hint=hint)
