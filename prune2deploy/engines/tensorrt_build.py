"""Serialized engines from ONNX files: one way for TensorRT 10, TensorRT 11 and TensorRT for RTX.

The three share a Python API; ``library`` is whichever of them was imported. Networks are strongly typed: the
ONNX file says which type each layer has, and no builder flag changes it. TF32 alone is a flag.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.errors import EngineError, InputError

Profile = Mapping[str, tuple[tuple[int, ...], ...]]

_LOGGED_WITHOUT_MEANING = "Thread context has not been set"


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializedEngine:
    """A built engine as bytes. ``details`` holds counts of the parsed network's layers by type and output type."""

    content: bytes
    batches: tuple[int, ...]
    profiles: tuple[Profile, ...]
    build_seconds: float
    details: Mapping[str, Any]


def collecting_logger(library: Any) -> Any:
    """A logger that prints nothing and keeps errors in its list ``errors``."""

    class CollectingLogger(library.ILogger):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            serious = severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR)
            if serious and _LOGGED_WITHOUT_MEANING not in message:
                self.errors.append(" ".join(message.split()))

    return CollectingLogger()


def serialized_from_onnx(library: Any, name: str, file: OnnxFile, options: BuildOptions) -> SerializedEngine:
    """Parse, give each batch size its profile, build and serialize.

    Every batch size gets a profile of its own (smallest = best = largest), so that its kernels are chosen for
    exactly that shape. A network with a fixed batch is built as it is.

    Raises:
        EngineError: an operator is not supported (named), the build fails, or a fixed batch is not the one asked for.
        InputError: the library cannot read the file.
    """
    started = time.perf_counter()
    logger = collecting_logger(library)
    try:
        builder = library.Builder(logger)
    # What the bindings raise where the library cannot start, for instance TensorRT without a driver.
    except (RuntimeError, TypeError) as error:
        raise EngineError(f"cannot start ({_last(logger, str(error))})", where=name, hint="see `p2d doctor`") from error
    network = builder.create_network(_creation_flags(library))
    _parse(library, name, network, logger, file)
    configuration = builder.create_builder_config()
    configuration.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if options.precision != "tf32":
        configuration.clear_flag(library.BuilderFlag.TF32)
    if options.tensorrt.workspace_bytes is not None:
        configuration.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.tensorrt.workspace_bytes)
    batches, profiles = profiles_for(file, options.batches, name)
    for profile in profiles:
        _add_profile(builder, configuration, profile, file, name)
    details = _network_details(network)
    serialized = builder.build_serialized_network(network, configuration)
    if serialized is None:
        raise EngineError(
            f"{name} could not build an engine ({_last(logger, 'it gave no reason')})",
            where=str(file.path),
            hint="try another --precision or a smaller --batch",
        )
    return SerializedEngine(
        content=bytes(serialized),
        batches=batches,
        profiles=profiles,
        build_seconds=time.perf_counter() - started,
        details=details,
    )


def profiles_for(file: OnnxFile, batches: tuple[int, ...], name: str) -> tuple[tuple[int, ...], tuple[Profile, ...]]:
    """The batch sizes that an engine of this file can run, ascending, and one profile for each; none for a fixed batch.

    Raises:
        EngineError: a dimension other than the batch is dynamic, or a fixed batch is not the one asked for.
    """
    for tensor in file.inputs:
        if not tensor.shape or None in tensor.shape[1:]:
            raise EngineError(
                f"input {tensor.name!r} has the shape {tensor.shape}; {name} needs all sizes but the batch fixed",
                where=str(file.path),
                hint="export it at a fixed image size",
            )
    wanted = tuple(sorted(set(batches)))
    fixed = sorted({tensor.shape[0] for tensor in file.inputs if tensor.shape[0] is not None})
    if fixed:
        if fixed != list(wanted):
            raise EngineError(
                f"the network has a fixed batch of {fixed[0]}, and {list(wanted)} is asked for",
                where=str(file.path),
                hint=f"pass --batch {fixed[0]}, or export with a dynamic batch",
            )
        return wanted, ()
    profiles = tuple(
        {tensor.name: (_with_batch(tensor.shape, batch),) * 3 for tensor in file.inputs} for batch in wanted
    )
    return wanted, profiles


def _with_batch(shape: tuple[int | None, ...], batch: int) -> tuple[int, ...]:
    return (batch, *(size for size in shape[1:] if size is not None))


def _creation_flags(library: Any) -> int:
    """STRONGLY_TYPED where the library still asks for it; TensorRT 11 has no other kind of network."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(library: Any, name: str, network: Any, logger: Any, file: OnnxFile) -> None:
    parser = library.OnnxParser(network, logger)
    # From the file, not from bytes, so that external weights are found.
    if parser.parse_from_file(str(file.path)) and network.num_layers:
        return
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        operator = error.node_operator()
        if operator:
            description = " ".join(error.desc().split())
            # The parser says "false" where its check is simply that the operator is not there.
            reason = f": {description}" if " " in description else ""
            raise EngineError(
                f"{name} cannot build operator {operator} (node {error.node_name() or error.node()!r}){reason}",
                where=str(file.path),
                hint="replace the operator in the model, or name another --engine",
            )
    reason = _last(logger, "it found no layers")
    raise InputError(f"cannot be read by {name} ({reason})", where=str(file.path), hint="export it again")


def _add_profile(builder: Any, configuration: Any, profile: Profile, file: OnnxFile, name: str) -> None:
    made = builder.create_optimization_profile()
    for tensor, shapes in profile.items():
        made.set_shape(tensor, *shapes)
    if configuration.add_optimization_profile(made) < 0:
        raise EngineError(f"{name} refused the profile {dict(profile)}", where=str(file.path), hint="try other batches")


def _network_details(network: Any) -> dict[str, Any]:
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    outputs = Counter(layer.get_output_type(number).name for layer in layers for number in range(layer.num_outputs))
    return {
        "layers": len(layers),
        "layers_by_type": dict(sorted(Counter(layer.type.name for layer in layers).items())),
        "outputs_by_type": dict(sorted(outputs.items())),
    }


def _last(logger: Any, otherwise: str) -> str:
    return str(logger.errors[-1]) if logger.errors else otherwise
