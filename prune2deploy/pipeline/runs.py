"""Beginning, resuming and ending a run."""

import datetime
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from prune2deploy import __version__
from prune2deploy.errors import InputError
from prune2deploy.model.spec import ModelSpec
from prune2deploy.run import RunFolder, RunManifest

_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "accelerate")


def begin_run(
    *,
    command: tuple[str, ...],
    model: ModelSpec,
    input_shape: tuple[int, ...],
    data: str | None,
    seed: int,
    options: Mapping[str, Any],
    out: Path | None,
    resume: bool,
) -> RunFolder:
    """A new run folder; with ``resume``, the one at ``out`` (or the latest), which must be of the same options.

    Raises:
        InputError: there is nothing to resume, or it was begun with other options.
    """
    if resume:
        run = RunFolder.open(out)
        differing = sorted(
            name
            for name in {*options, *run.manifest.options}
            if _plain(options.get(name)) != _plain(run.manifest.options.get(name))
        )
        if differing or run.manifest.model != str(model):
            raise InputError(
                f"the run was begun with other options ({', '.join(differing) or 'model'})",
                where=str(run.path),
                hint=f"resume it as it was begun: {' '.join(run.manifest.command)} --resume",
            )
        return run
    manifest = RunManifest(
        command=command,
        created=datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        versions={"prune2deploy": __version__, "python": platform.python_version(), **_versions()},
        model=str(model),
        input_shape=tuple(input_shape),
        data=data,
        seed=seed,
        options=_plain(options),
    )
    return RunFolder.create(manifest, name=model.name.rpartition(":")[2], out=out)


def end_run(run: RunFolder) -> None:
    """Mark a run as finished."""
    run.save(replace(run.manifest, finished=True))


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in _PACKAGES}


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON: tuples as lists."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
