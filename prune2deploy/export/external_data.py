"""ONNX files over the limits of one file: weights in a data file beside it, and what serialises the whole model."""

from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data, uses_external_data, write_external_data_tensors

from prune2deploy.storage import DATA_DIGEST, sha256_of_file

BYTES_LIMIT = 2**31 - 2**20
"""Weights of one file, whose 2 GiB hold its nodes as well."""

_SMALLEST_TENSOR_BYTES = 1024


def data_path(path: Path) -> Path:
    """Where the weights of the ONNX file ``path`` lie, if not in it."""
    return path.with_name(f"{path.name}.data")


def stored_bytes(model: onnx.ModelProto) -> int:
    """Bytes that the weights take, without those that lie in a data file already."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def write_onnx(model: onnx.ModelProto, path: Path, *, external: bool) -> None:
    """Write ``model`` to ``path``; with ``external``, or where one file is too small, its weights beside it.

    Tensors of less than 1 KiB stay in the model, because engines read shapes from them. Then ``model`` itself refers
    to the data file afterwards, and holds the weights no more. The same model gives the same bytes.
    """
    if external or stored_bytes(model) > BYTES_LIMIT:
        _move_weights(model, data_path(path))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _move_weights(model: onnx.ModelProto, beside: Path) -> None:
    convert_model_to_external_data(model, location=beside.name, size_threshold=_SMALLEST_TENSOR_BYTES)
    if not any(uses_external_data(tensor) for tensor in model.graph.initializer):
        return
    beside.write_bytes(b"")
    write_external_data_tensors(model, str(beside.parent))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata[DATA_DIGEST] = sha256_of_file(beside)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the shapes and types of all tensors between its nodes, however large its weights are.

    Beyond the limit of one file ``model`` itself is empty of its weights afterwards.
    """
    if stored_bytes(model) <= BYTES_LIMIT:
        return onnx.shape_inference.infer_shapes(model)
    # ONNX infers shapes over one string of bytes, which cannot hold the weights; they say nothing about shapes.
    weights = {}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= _SMALLEST_TENSOR_BYTES:
            weights[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
    inferred = onnx.shape_inference.infer_shapes(model)
    for tensor in inferred.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = weights.pop(tensor.name)
            tensor.ClearField("data_location")
    return inferred
