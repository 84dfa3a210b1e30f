"""Build options as the library's builder configuration; what a library lacks is refused by the name of its option.

Seen with TensorRT for RTX 1.7.1, without a GPU:

===========================  ====================================================================
``--optimization-level``     taken, and the engine is the same, byte for byte, at 0, 3 and 5
``--hardware-compatible``    ignored with a warning by the library, so refused here
``--version-compatible``     the build fails, since its lean runtime is not part of the package
``--strip-weights``          the build fails in the CUDA driver, so refused here where there is no GPU
===========================  ====================================================================
"""

from typing import Any

from prune2deploy.engines.engine import BuildOptions, TensorRTOptions
from prune2deploy.engines.tensorrt.library import last_error
from prune2deploy.engines.tensorrt.network import ParsedNetwork
from prune2deploy.engines.tensorrt.shapes import Profile, Shapes
from prune2deploy.errors import EngineError, InputError


def configuration_for(
    library: Any, name: str, parsed: ParsedNetwork, options: BuildOptions, shapes: Shapes, logger: Any, *, has_gpu: bool
) -> Any:
    """The builder configuration of one build.

    Raises:
        EngineError: the library lacks what an option asks for, needs a GPU for it, or refuses a profile.
        InputError: there is no such compute capability; the message lists those that there are.
    """
    configuration = parsed.builder.create_builder_config()
    configuration.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if options.precision != "tf32":
        configuration.clear_flag(library.BuilderFlag.TF32)
    asked = options.tensorrt
    if asked.workspace_bytes is not None:
        configuration.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, asked.workspace_bytes)
    if asked.optimization_level is not None:
        configuration.builder_optimization_level = asked.optimization_level
    if asked.version_compatible:
        _set_flags(library, name, configuration, "--version-compatible", "VERSION_COMPATIBLE")
    if asked.strip_weights:
        if not has_gpu:
            raise EngineError(
                "needs a GPU while it builds", where=f"--strip-weights, {name}", hint="build on a machine with one"
            )
        # REFIT itself lets weights differ, which costs speed and, in TensorRT 11.3, has given wrong results.
        _set_flags(library, name, configuration, "--strip-weights", "STRIP_PLAN", "REFIT_IDENTICAL")
    if asked.hardware_compatible:
        _make_hardware_compatible(library, name, configuration)
    if asked.compute_capabilities:
        _set_compute_capabilities(library, name, configuration, asked)
    for profile in shapes.profiles:
        _add_profile(parsed.builder, configuration, profile, name, logger)
    return configuration


def _set_flags(library: Any, name: str, configuration: Any, option: str, *flags: str) -> None:
    for flag in flags:
        value = getattr(library.BuilderFlag, flag, None)
        if value is None:
            raise _lacks(library, name, option, hint="leave it out, or install a newer version")
        configuration.set_flag(value)


def _make_hardware_compatible(library: Any, name: str, configuration: Any) -> None:
    level = getattr(getattr(library, "HardwareCompatibilityLevel", None), "AMPERE_PLUS", None)
    if level is not None:
        configuration.hardware_compatibility_level = level
        # TensorRT for RTX has the name, warns, and stays as it was.
        if configuration.hardware_compatibility_level == level:
            return
    hint = "leave it out"
    if hasattr(configuration, "set_compute_capability"):
        hint += ": its engines run on every GPU from compute capability 8.0 on, or on those of --compute-capability"
    raise _lacks(library, name, "--hardware-compatible", hint=hint)


def _set_compute_capabilities(library: Any, name: str, configuration: Any, asked: TensorRTOptions) -> None:
    if not hasattr(configuration, "set_compute_capability"):
        raise _lacks(
            library, name, "--compute-capability", hint="it builds for the GPU of this machine; trt-rtx takes a list"
        )
    offered = offered_capabilities(library)
    if unknown := [capability for capability in asked.compute_capabilities if capability not in offered]:
        raise InputError(
            f"{name} {library.__version__} does not build for {_spelled(unknown)}",
            where="--compute-capability",
            hint=f"choose from {_spelled(offered)}",
        )
    configuration.num_compute_capabilities = len(asked.compute_capabilities)
    for number, (major, minor) in enumerate(asked.compute_capabilities):
        value = getattr(library.ComputeCapability, f"SM{major}{minor}")
        if not configuration.set_compute_capability(value, number):
            raise EngineError(
                f"{name} refused compute capability {major}.{minor}",
                where="--compute-capability",
                hint="build without it",
            )


def offered_capabilities(library: Any) -> tuple[tuple[int, int], ...]:
    """Compute capabilities that the library builds for, ascending: its members SM75, SM120 ..."""
    members = getattr(getattr(library, "ComputeCapability", None), "__members__", {})
    numbers = [name.removeprefix("SM") for name in members if name.startswith("SM")]
    return tuple(sorted((int(number[:-1]), int(number[-1])) for number in numbers if number.isdigit()))


def _add_profile(builder: Any, configuration: Any, profile: Profile, name: str, logger: Any) -> None:
    made = builder.create_optimization_profile()
    for tensor, shapes in profile.items():
        made.set_shape(tensor, *shapes)
    if configuration.add_optimization_profile(made) < 0:
        reason = last_error(logger, "it gave no reason")
        raise EngineError(
            f"refused the profile {dict(profile)} ({reason})", where=f"--batch, {name}", hint="try other batches"
        )


def _spelled(capabilities: tuple[tuple[int, int], ...] | list[tuple[int, int]]) -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in capabilities)


def _lacks(library: Any, name: str, option: str, *, hint: str) -> EngineError:
    return EngineError(f"{name} {library.__version__} has nothing like it", where=option, hint=hint)
