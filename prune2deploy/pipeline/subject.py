"""Opening what a command is given: a checkpoint of any program, one of our bundles, or a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.checkpoint.bundle import is_bundle, load_bundle
from prune2deploy.checkpoint.foreign import read_checkpoint
from prune2deploy.checkpoint.identify import identify_architecture
from prune2deploy.checkpoint.weights import load_weights
from prune2deploy.data.load import load_data
from prune2deploy.data.splits import DataSplits, Normalization, check_fits
from prune2deploy.errors import InputError, ModelError
from prune2deploy.model.spec import TORCHVISION, ModelSpec, build_model, default_input_shape, default_normalization
from prune2deploy.pipeline.places import settled_data
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import MANIFEST, RunFolder
from prune2deploy.storage import sha256_of_file

DENSE = "dense"
_RESCALING = ("googlenet", "inception_v3")
_CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".tar", ".bin")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its weights, and what is known of it.

    ``plan`` is what was already cut out of ``spec`` (a bundle of a pruned model), None for nothing. ``path`` is what
    was read, absolute, and ``weights_sha256`` the digest of the file in it that holds the weights; both are None for
    an untrained model. ``trained_epochs`` is how long it was trained, None where the checkpoint does not say.
    ``notes`` are choices made for the user.
    """

    model: nn.Module
    spec: ModelSpec
    plan: PrunePlan | None
    input_shape: tuple[int, ...]
    data: str | None
    normalization: Normalization | None
    path: Path | None = None
    trained_epochs: int | None = None
    weights_sha256: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_subject(
    path: Path,
    *,
    model: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    trust_pickle: bool = False,
    progress: Progress = SILENT,
) -> Subject:
    """Read a checkpoint, a bundle, or the dense model of a run. ``model`` overrules what the file says of itself.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the architecture.
        ModelError: the architecture is unknown or cannot be built.
    """
    with progress.task(f"reading {path}"):
        if (path / MANIFEST).is_file():
            path = _dense_of_run(path)
        if is_bundle(path):
            subject = _from_bundle(path, model)
        else:
            subject = _from_foreign(path, model, trust_pickle=trust_pickle)
            if input_shape is None:
                size = "x".join(map(str, subject.input_shape))
                note = f"the input size is taken to be {size}: --input overrules"
                subject = replace(subject, notes=(*subject.notes, note))
        if input_shape is not None:
            subject = replace(subject, input_shape=input_shape)
    for note in subject.notes:
        progress.note(note)
    return subject


def fresh_subject(spec_text: str, *, input_shape: tuple[int, ...] | None = None) -> Subject:
    """An untrained model of a spec.

    Raises:
        ModelError: it is unknown or cannot be built.
    """
    spec = ModelSpec.parse(spec_text)
    model = build_model(spec, seed=0).eval()
    return Subject(
        model=model,
        spec=spec,
        plan=None,
        input_shape=input_shape or default_input_shape(spec, model),
        data=None,
        normalization=_published_normalization(spec, model),
    )


def named_subject(
    text: str,
    *,
    model: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    trust_pickle: bool = False,
    progress: Progress = SILENT,
) -> Subject:
    """What ``text`` names: a checkpoint, a bundle or a run folder where there is one, else a model spec, untrained.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the architecture.
        ModelError: the architecture is unknown or cannot be built.
        InputError: it looks like a path, and nothing is there.
    """
    path = Path(text)
    if path.exists():
        return open_subject(path, model=model, input_shape=input_shape, trust_pickle=trust_pickle, progress=progress)
    if path.suffix in _CHECKPOINT_SUFFIXES or "/" in text:
        raise InputError("does not exist", where=text, hint="name a checkpoint, a model or a run folder")
    return fresh_subject(text, input_shape=input_shape)


def load_subject_data(subject: Subject, data: str | None, *, progress: Progress = SILENT) -> DataSplits | None:
    """The data to fine-tune and evaluate on: ``data``, else what the checkpoint records, else None.

    Raises:
        DataError: it cannot be read, or its classes do not fit the model.
    """
    named = data or subject.data
    if named is None:
        return None
    channels, height, width = subject.input_shape
    splits = load_data(
        settled_data(named),
        input_shape=(channels, height, width),
        normalization=subject.normalization,
        progress=progress,
    )
    check_fits(splits, output_count(subject.model, subject.input_shape))
    return splits


def output_count(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Number of class scores that the model gives for an image of ``input_shape`` (C, H, W).

    Raises:
        ModelError: it cannot run on such an image, or does not return (N, classes).
    """
    training = model.training
    try:
        with torch.no_grad():
            scores = model.eval()(torch.zeros(2, *input_shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        size = "x".join(map(str, input_shape))
        raise ModelError(
            f"the model does not run on an input of {size} ({str(error).splitlines()[0]})",
            hint="pass the size that it was made for with --input",
        ) from error
    finally:
        model.train(training)
    if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
        raise ModelError("the model returns no class scores of shape (N, classes)", hint="prune it without --data")
    return int(scores.shape[1])


def _dense_of_run(path: Path) -> Path:
    run = RunFolder.open(path)
    if DENSE not in run.manifest.variants:
        held = ", ".join(run.manifest.variants) or "nothing yet"
        raise InputError(
            f"the run holds no dense model ({held})",
            where=str(path),
            hint="finish it with --resume, or name the folder of a variant",
        )
    return run.bundle_path(DENSE)


def _from_bundle(path: Path, model: str | None) -> Subject:
    bundle = load_bundle(path)
    manifest = bundle.manifest
    if model is not None and str(ModelSpec.parse(model)) != str(bundle.spec):
        raise InputError(
            f"the bundle holds {bundle.spec}, not {model}", where=str(path), hint="leave --model out: a bundle knows"
        )
    constants = manifest.normalization
    return Subject(
        model=bundle.model,
        spec=bundle.spec,
        plan=manifest.plan,
        input_shape=manifest.input_shape,
        data=manifest.data,
        normalization=None if constants is None else Normalization(mean=constants[0], std=constants[1]),
        trained_epochs=manifest.provenance.get("epochs"),
        path=path.resolve(),
        weights_sha256=manifest.weights_sha256,
        provenance=manifest.provenance,
    )


def _from_foreign(path: Path, model_text: str | None, *, trust_pickle: bool) -> Subject:
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle)
    notes: list[str] = []
    if checkpoint.module is not None:
        notes.append(f"{path} was unpickled because of --trust-pickle: it could have run any code with your rights")
    if checkpoint.skipped:
        notes.append(
            f"classes in {path} were not imported, as weights do not need them: {', '.join(checkpoint.skipped)}"
        )
    if model_text is not None:
        spec = ModelSpec.parse(model_text)
    else:
        found = identify_architecture(checkpoint.state_dict, hint=checkpoint.architecture, where=str(path))
        spec = found.spec
        notes.append(f"the architecture is {spec}, by the names and shapes of its tensors")
        notes += found.notes
    model = build_model(spec, seed=0)
    notes += _input_transform_note(spec)
    notes += load_weights(model, checkpoint.state_dict, spec=spec, where=str(path))
    model.eval()
    return Subject(
        model=model,
        spec=spec,
        plan=None,
        input_shape=default_input_shape(spec, model),
        data=checkpoint.data,
        normalization=_published_normalization(spec, model),
        path=path.resolve(),
        weights_sha256=sha256_of_file(path),
        notes=tuple(dict.fromkeys(notes)),
    )


def _input_transform_note(spec: ModelSpec) -> list[str]:
    """Keys and shapes do not show whether a network rescales its input, as torchvision's published weights expect."""
    if spec.source != TORCHVISION or spec.name not in _RESCALING or "transform_input" in spec.arguments:
        return []
    return [
        f"the weights that torchvision publishes for {spec.name} expect rescaled inputs: for those pass "
        f"--model '{spec.with_arguments(transform_input=True)}'"
    ]


def _published_normalization(spec: ModelSpec, model: nn.Module) -> Normalization | None:
    constants = default_normalization(spec, model)
    return None if constants is None else Normalization(mean=constants[0], std=constants[1])
