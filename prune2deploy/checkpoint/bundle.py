"""Our own file: a model, pruned or dense, with all that is needed to build it again and nothing that is unpickled.

    NAME/                     or      NAME.safetensors
      model.safetensors                 weights, with the manifest in the metadata of the header
      bundle.json                       the manifest once more, for people and other programs

Loading builds the architecture without drawing weights, slices it by the plan and puts the weights in, strictly. Only
where the plan needs the graph edited (``backend``: graph) is the architecture traced again. ``model.safetensors`` is a
whole bundle by itself, so that replacing it is one rename.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prune2deploy.budget.plan import PrunePlan, fingerprint_of
from prune2deploy.checkpoint.compare import compare
from prune2deploy.checkpoint.manifest import BACKENDS, BundleManifest, versions_here
from prune2deploy.checkpoint.skeleton import build_skeleton
from prune2deploy.errors import CheckpointError, InputError, ModelError, ProofError
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.storage import atomic_path, read_json, write_json
from prune2deploy.surgery.apply import apply_plan, as_parameter_like, named_tensors, replace_tensors, shapes_of
from prune2deploy.surgery.edit import rebuilt_copy
from prune2deploy.surgery.edited import EditedModule

WEIGHTS_FILE = "model.safetensors"
MODULE, GRAPH = BACKENDS
MANIFEST_FILE = "bundle.json"
_METADATA_KEY = "p2d"
_HINT = "copy the bundle again, or make it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBundle:
    """A model in evaluation mode on the CPU, and what its bundle says of it."""

    model: nn.Module
    manifest: BundleManifest

    @property
    def spec(self) -> ModelSpec:
        """The dense architecture."""
        return ModelSpec.parse(self.manifest.model)


def save_bundle(
    path: Path,
    model: nn.Module,
    *,
    spec: ModelSpec,
    plan: PrunePlan | None,
    input_shape: tuple[int, ...],
    class_count: int | None = None,
    class_names: tuple[str, ...] = (),
    data: str | None = None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> BundleManifest:
    """Write ``model``, which is ``spec`` cut by ``plan``, to a folder, or to one file if ``path`` ends in .safetensors.

    A shared tensor is stored once, under its first name. Values, types and shapes come back bit by bit; where a model
    keeps its weights (device, memory layout) does not.

    Raises:
        InputError: the model is not what ``spec`` and ``plan`` give, or has state that is no tensor.
        StorageError: the disk is full or refuses the file. An earlier bundle of that name is intact.
    """
    backend = GRAPH if isinstance(model, EditedModule) else MODULE
    _check_rebuildable(model, spec, plan, backend)
    tensors, aliases = _stored_tensors(model)
    manifest = BundleManifest(
        model=str(spec),
        plan=plan,
        input_shape=tuple(input_shape),
        weights_sha256=weights_digest(tensors),
        tensor_count=len(tensors),
        class_count=class_count if class_count is not None else len(class_names) or None,
        class_names=tuple(class_names),
        data=data,
        normalization=normalization,
        provenance=provenance or {},
        metrics=metrics or {},
        aliases=aliases,
        versions=versions_here(),
        backend=backend,
    )
    document = manifest.to_document()
    single = path.suffix == ".safetensors"
    with atomic_path(path if single else path / WEIGHTS_FILE) as partial:
        try:
            save_file(tensors, partial, metadata={_METADATA_KEY: json.dumps(document, allow_nan=False)})
        except SafetensorError as error:
            # What it reports while writing is what the disk said; atomic_path makes that the documented error.
            raise OSError(str(error)) from error
    if not single:
        write_json(path / MANIFEST_FILE, document)
    return manifest


def load_bundle(path: Path) -> LoadedBundle:
    """Build the model of a bundle, with bit-equal weights.

    Raises:
        CheckpointError: it is missing, cut off, changed, of a newer schema or no bundle.
        ModelError: its architecture cannot be built here (timm or the user's own module is not installed).
    """
    manifest = read_manifest(path)
    file = _weights_file(path)
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if len(tensors) != manifest.tensor_count or weights_digest(tensors) != manifest.weights_sha256:
        raise CheckpointError("the weights are damaged (their digest is another)", where=str(file), hint=_HINT)
    model = _pruned_architecture(manifest, where=str(path))
    weights = {**tensors, **{alias: tensors[name] for alias, name in manifest.aliases.items()}}
    differences = compare(expected=shapes_of(model), found={name: tuple(t.shape) for name, t in weights.items()})
    if differences.count:
        raise CheckpointError(
            f"{manifest.model} is another network here than where the bundle was made: {differences}",
            where=str(path),
            hint=f"use the versions that made it: {', '.join(f'{k} {v}' for k, v in manifest.versions.items())}",
        )
    own = named_tensors(model)
    # The file's tensors lie in it as they come; a copy is aligned, which both speed and the last bit of a result need.
    loaded = {name: as_parameter_like(own[name], tensor.clone()) for name, tensor in tensors.items()}
    replace_tensors(model, {id(own[name]): loaded[manifest.aliases.get(name, name)] for name in weights})
    return LoadedBundle(model=model.eval(), manifest=manifest)


def read_manifest(path: Path) -> BundleManifest:
    """What a bundle says of its model, without loading the weights.

    Raises:
        CheckpointError: it is missing, cut off, changed, of a newer schema or no bundle.
    """
    file = _weights_file(path)
    if not file.is_file():
        what = "does not exist" if not path.exists() else f"is no bundle (no {WEIGHTS_FILE} in it)"
        raise CheckpointError(
            what, where=str(path), hint="name a folder that p2d wrote, such as p2d-runs/latest/pruned"
        )
    try:
        with safe_open(file, framework="pt") as archive:
            text = (archive.metadata() or {}).get(_METADATA_KEY)
        document = json.loads(text) if text is not None else None
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(document, dict):
        raise CheckpointError("holds weights, but is no bundle of prune2deploy", where=str(path))
    manifest = BundleManifest.from_document(document, where=str(path))
    if file != path:
        _check_manifest_file(path, document)
    return manifest


def is_bundle(path: Path) -> bool:
    """Whether ``path`` is a bundle, whole or damaged, rather than a checkpoint of another program."""
    if path.is_dir():
        return (path / MANIFEST_FILE).is_file() or (path / WEIGHTS_FILE).is_file()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as archive:
            return _METADATA_KEY in (archive.metadata() or {})
    except (SafetensorError, OSError):
        return False


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever file they lie in and in whatever order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights_file(path: Path) -> Path:
    return path if path.suffix == ".safetensors" and not path.is_dir() else path / WEIGHTS_FILE


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"is damaged or cut off ({error})", where=str(path), hint=_HINT)


def _check_manifest_file(path: Path, embedded: Mapping[str, Any]) -> None:
    where = path / MANIFEST_FILE
    try:
        document = read_json(where)
    except InputError as error:
        raise CheckpointError(error.what, where=error.where, hint=_HINT) from error
    BundleManifest.from_document(document, where=str(where))
    if document != embedded:
        raise CheckpointError(
            f"{MANIFEST_FILE} and {WEIGHTS_FILE} are of two bundles",
            where=str(path),
            hint=f"load {path / WEIGHTS_FILE}, which is whole by itself",
        )


def _check_rebuildable(model: nn.Module, spec: ModelSpec, plan: PrunePlan | None, backend: str) -> None:
    """A bundle that could not be loaded is never written."""
    extra = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if extra:
        raise InputError(
            f"{extra[0]} is no tensor, which a bundle cannot hold",
            where=str(spec),
            hint="drop get_extra_state from the module",
        )
    if backend == GRAPH and plan is None:
        raise InputError("the model is an edited graph, and there is no plan to edit it by again", where=str(spec))
    rebuilt = _architecture(spec) if backend == GRAPH else _sliced_architecture(spec, plan, where=str(spec))
    shapes = shapes_of(rebuilt)
    if backend == GRAPH and plan is not None:
        shapes = _shapes_after(plan, shapes, _aliases(rebuilt), where=str(spec))
    differences = compare(expected=shapes, found=shapes_of(model))
    if differences.count:
        raise InputError(f"the model is not what its spec and plan give: {differences}", where=str(spec))
    own = named_tensors(model)
    for alias, name in _aliases(rebuilt).items():
        if own[alias] is not own[name]:
            raise InputError(
                f"{alias} and {name} are one tensor in the architecture and two in the model",
                where=str(spec),
                hint="tie them again",
            )


def _aliases(model: nn.Module) -> dict[str, str]:
    """The first name of each shared tensor by its other names."""
    first_name: dict[int, str] = {}
    return {
        name: first
        for name, tensor in named_tensors(model).items()
        if (first := first_name.setdefault(id(tensor), name)) != name
    }


def _stored_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    aliases = _aliases(model)
    storages: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        if name in aliases:
            continue
        values = tensor.detach().cpu().contiguous()
        # The format refuses tensors that overlap in memory, even where they are different tensors.
        address = values.untyped_storage().data_ptr()
        tensors[name] = values.clone() if address in storages else values
        storages.add(address)
    return tensors, aliases


def _shapes_after(
    plan: PrunePlan, shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str], *, where: str
) -> dict[str, tuple[int, ...]]:
    """The shapes that a plan leaves of dense ones, without anything being built again."""
    if fingerprint_of(shapes) != plan.fingerprint:
        raise InputError("the plan belongs to another model (names or shapes of tensors differ)", where=where)
    after = {name: list(shape) for name, shape in shapes.items()}
    for entry in plan.entries:
        after[entry.tensor][entry.dim] = len(entry.kept)
    return {name: tuple(after[aliases.get(name, name)]) for name in shapes}


def _pruned_architecture(manifest: BundleManifest, *, where: str) -> nn.Module:
    spec = ModelSpec.parse(manifest.model)
    if manifest.backend == MODULE or manifest.plan is None:
        return _sliced_architecture(spec, manifest.plan, where=where)
    # Tracing wants tensors that have memory, so the weights are drawn here and thrown away.
    model = build_model(spec, seed=0).eval()
    try:
        return rebuilt_copy(model, manifest.plan, (torch.zeros(1, *manifest.input_shape),))
    except (InputError, ProofError) as error:
        raise CheckpointError(
            f"{spec} cannot be traced and edited here as where the bundle was made ({error})",
            where=where,
            hint=f"use the versions that made it: {', '.join(f'{k} {v}' for k, v in manifest.versions.items())}",
        ) from error


def _sliced_architecture(spec: ModelSpec, plan: PrunePlan | None, *, where: str) -> nn.Module:
    model = _architecture(spec)
    if plan is None:
        return model
    try:
        return apply_plan(model, plan)
    except InputError as error:
        raise CheckpointError(
            f"the plan was made for another {spec} than the one here", where=where, hint="use the versions that made it"
        ) from error


def _architecture(spec: ModelSpec) -> nn.Module:
    """The architecture with values only where no checkpoint gives them."""
    try:
        model = build_skeleton(spec)
    except ModelError:
        return build_model(spec, seed=0)
    if any(tensor.is_meta for tensor in _values_no_checkpoint_gives(model)):
        return build_model(spec, seed=0)
    return model


def _values_no_checkpoint_gives(model: nn.Module) -> Iterator[Tensor]:
    stored = {id(tensor) for tensor in named_tensors(model).values()}
    for module in model.modules():
        yield from (buffer for buffer in module.buffers(recurse=False) if id(buffer) not in stored)
        for value in vars(module).values():
            members = value if isinstance(value, list | tuple) else (value,)
            yield from (member for member in members if isinstance(member, Tensor) and id(member) not in stored)
