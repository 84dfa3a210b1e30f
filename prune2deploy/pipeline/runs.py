"""Beginning, resuming and ending a run.

With several processes the main one looks at the disk and all learn what it saw: all must call these functions.
"""

import contextlib
import datetime
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from prune2deploy.bench.machine.environment import versions
from prune2deploy.errors import InputError, P2DError, StorageError
from prune2deploy.model.spec import ModelSpec
from prune2deploy.processes import count, gathered, is_main, on_main
from prune2deploy.progress import Progress
from prune2deploy.run import LATEST, MANIFEST, RUNS_FOLDER, RunFolder, RunManifest

_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "accelerate")


def run_to_resume(command: str, *, out: Path | None, progress: Progress) -> RunFolder | None:
    """The run at ``out`` (None: the latest); None where ``command`` has begun none, so that there is nothing to resume.

    Raises:
        InputError: ``out`` holds something else, or a damaged run; a process on another machine does not see it.
    """
    run = on_main(lambda: _run_begun(command, out=out, progress=progress))
    if run is not None and not all(gathered((run.path / MANIFEST).is_file())):
        raise InputError(
            f"is not seen by all {count()} processes",
            where=f"--resume, {run.path}",
            hint="keep the run in a folder that all machines share, and start them all in the same place",
        )
    return run


def _run_begun(command: str, *, out: Path | None, progress: Progress) -> RunFolder | None:
    folder = out if out is not None else Path(RUNS_FOLDER) / LATEST
    if (folder / MANIFEST).is_file():
        run = RunFolder.open(out)
        begun_by = run.manifest.options.get("command")
        if begun_by == command:
            return run
        if out is not None:
            raise InputError(
                f"was begun by p2d {begun_by}, not by p2d {command}",
                where=f"--resume, {out}",
                hint="name another folder with --out",
            )
    elif out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is no run folder", where=f"--resume, {out}", hint="name the folder of the interrupted run")
    progress.note("there is nothing to resume: the run is begun anew")
    return None


def check_repeats(run: RunFolder, *, model: ModelSpec, options: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other options than it was begun with.

    Raises:
        InputError: some differ; the message names them and the command that does resume it.
    """
    begun = run.manifest.options
    differing = sorted(name for name in {*options, *begun} if _plain(options.get(name)) != _plain(begun.get(name)))
    if run.manifest.model != str(model):
        differing.append("model")
    if differing:
        typed = [part for part in run.manifest.command if part != "--resume"]
        raise InputError(
            f"the run was begun with other options ({', '.join(_spelled(differing, options, begun))})",
            where=str(run.path),
            hint=f"resume it as it was begun, `{' '.join(typed)} --resume`, or leave --resume out to begin another",
        )


@contextlib.contextmanager
def new_run(
    *,
    command: tuple[str, ...],
    model: ModelSpec,
    input_shape: tuple[int, ...],
    data: str | None,
    seed: int,
    options: Mapping[str, Any],
    out: Path | None,
) -> Iterator[RunFolder]:
    """Make a run folder to work in. If the work fails before it has kept anything, the folder is removed again.

    A folder stays where it can be resumed: after an interruption, or on a full disk.

    Raises:
        InputError: ``out`` is not empty.
        StorageError: the folder cannot be written.
    """
    check_out(out)
    manifest = RunManifest(
        command=command,
        created=datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        versions={**versions(), **{package: metadata.version(package) for package in _PACKAGES}},
        model=str(model),
        input_shape=tuple(input_shape),
        data=data,
        seed=seed,
        options=_plain(options),
    )
    link = Path(RUNS_FOLDER) / LATEST
    earlier = link.readlink() if is_main() and link.is_symlink() else None
    run = RunFolder.create(manifest, name=model.name.rpartition(":")[2], out=out)
    try:
        yield run
    except P2DError as error:
        kept = isinstance(error, StorageError) or run.manifest.variants or run.training_folder.exists()
        if is_main() and not kept:
            _withdraw(run, link=link, earlier=earlier)
        raise


def check_out(out: Path | None) -> None:
    """Refuse a folder for a new run that holds something already, before any work is done for it.

    Raises:
        InputError: ``out`` exists and is no empty folder.
    """
    on_main(lambda: _check_out(out))


def _check_out(out: Path | None) -> None:
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "add --resume to go on with it, or name a new folder" if (out / MANIFEST).is_file() else None
        raise InputError(
            "exists and is not an empty folder", where=f"--out {out}", hint=hint or "name a new folder with --out"
        )


def end_run(run: RunFolder) -> None:
    """Mark a run as finished."""
    if not run.manifest.finished:
        run.save(replace(run.manifest, finished=True))


def _withdraw(run: RunFolder, *, link: Path, earlier: Path | None) -> None:
    """Leave the disk as it was before the run was begun."""
    shutil.rmtree(run.path, ignore_errors=True)
    link.unlink(missing_ok=True)
    if earlier is not None:
        link.symlink_to(earlier)
    with contextlib.suppress(OSError):
        link.parent.rmdir()


def _spelled(names: list[str], given: Mapping[str, Any], begun: Mapping[str, Any]) -> Iterator[str]:
    """Each differing option with both values; of nested ones only what differs."""
    for name in names:
        now, before = _plain(given.get(name)), _plain(begun.get(name))
        if isinstance(now, Mapping) and isinstance(before, Mapping):
            inner = [key for key in {**before, **now} if now.get(key) != before.get(key)]
            yield from (f"{key} was {before.get(key)}, now {now.get(key)}" for key in inner)
        elif name == "model":
            yield "model"
        else:
            yield f"{name} was {before}, now {now}"


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON: tuples as lists."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
