"""What deployment asks of a graph beyond what the exporter writes: names, built-in pre- and postprocessing."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from prune2deploy.errors import InputError
from prune2deploy.export.external_data import with_shapes
from prune2deploy.export.passes.inputs import prepend_images, prepend_normalization
from prune2deploy.export.passes.node_names import free_name, modules_of_nodes, rename_nodes
from prune2deploy.export.passes.outputs import append_softmax, append_top_k
from prune2deploy.export.passes.zeros import drop_added_zeros

INPUT_NAME = "input"
OUTPUT_NAME = "output"
BATCH_NAME = "batch"
PRODUCER = "prune2deploy"
FLOAT_IMAGES = "nchw"
BYTE_IMAGES = "uint8-nhwc"

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPasses:
    """What is built into the graph.

    ``normalize`` is (mean, standard deviation) by channel: the file then takes images in [0, 1] and computes
    (x − mean) / std itself. ``softmax`` turns class scores into probabilities. With ``top_k`` the file gives the K best
    scores and their classes. ``input_format`` "uint8-nhwc" takes bytes (N, H, W, C), which needs ``normalize``; they
    are resized from ``source_size`` (height, width), None for the network's own size. ``batch`` is the one batch size
    that the file runs, None for any.
    """

    normalize: Normalization | None = None
    softmax: bool = False
    top_k: int | None = None
    input_format: str = FLOAT_IMAGES
    source_size: tuple[int, int] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.input_format not in (FLOAT_IMAGES, BYTE_IMAGES):
            raise InputError(
                f"{self.input_format!r} is no format of images",
                where="--input",
                hint=f"choose from {FLOAT_IMAGES}, {BYTE_IMAGES}",
            )
        if self.input_format == BYTE_IMAGES and self.normalize is None:
            raise InputError(
                "needs mean and standard deviation of the images", where=f"--input {BYTE_IMAGES}", hint="pass both"
            )
        if self.source_size is not None and (self.input_format != BYTE_IMAGES or min(self.source_size) < 1):
            raise InputError(
                f"images of size {self.source_size} cannot be resized",
                where="--input",
                hint=f"for instance --input {BYTE_IMAGES}@480x640",
            )
        for option, value in (("--top-k", self.top_k), ("--batch", self.batch)):
            if value is not None and value < 1:
                raise InputError("must be at least 1", where=f"{option} {value}")
        if self.normalize is not None:
            _check_normalization(*self.normalize)

    def to_metadata(self) -> Mapping[str, str]:
        """Each pass under its name, as JSON: what the metadata of an exported file says of it."""
        return {
            "normalize": json.dumps(self.normalize),
            "softmax": json.dumps(self.softmax),
            "top_k": json.dumps(self.top_k),
            "input_format": json.dumps(self.input_format),
            "source_size": json.dumps(self.source_size),
            "batch": json.dumps(self.batch),
        }


def apply_passes(model: onnx.ModelProto, passes: GraphPasses) -> onnx.ModelProto:
    """Rename nodes and interface, build in what ``passes`` asks for, and drop what nothing reads.

    A single input is called ``input`` and a single output ``output`` (``scores`` and ``classes`` with ``top_k``);
    several keep the model's names. A dynamic batch is called ``batch`` (the exporter calls it s77 or so). Nodes are
    called after the modules that they come from. The exporter's notes on each node go, because they hold paths of the
    machine that exported; so does the file's metadata, which is written afterwards with ``with_metadata``. The batch
    size is the exporter's: nothing here fixes or frees it.

    Raises:
        ModelError: the network has no input or output of the kind that a pass needs.
        InputError: ``top_k`` is more than there are classes.
    """
    modules = modules_of_nodes(model)
    graph = gs.import_onnx(model)
    # GraphSurgeon's own logger prints; a failed fold is left as it is, which is what we want.
    with gs.logger.G_LOGGER.suppress():
        graph.fold_constants()
    drop_added_zeros(graph)
    with gs.logger.G_LOGGER.suppress():
        graph.cleanup()
    rename_nodes(graph, modules)
    _rename_interface(graph)
    _rename_batch(graph)
    if passes.normalize is not None:
        if passes.input_format == BYTE_IMAGES:
            prepend_images(graph, *passes.normalize, source_size=passes.source_size)
        else:
            prepend_normalization(graph, *passes.normalize)
    if passes.softmax:
        append_softmax(graph)
    if passes.top_k is not None:
        append_top_k(graph, passes.top_k)
    with gs.logger.G_LOGGER.suppress():
        graph.cleanup().toposort()
    result: onnx.ModelProto = gs.export_onnx(graph)
    result.ir_version = model.ir_version
    return with_shapes(result)


def with_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The same model with only ``metadata``, in order of the keys, and this project as its producer."""
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    stamped.producer_name = PRODUCER
    stamped.ClearField("producer_version")
    del stamped.metadata_props[:]
    onnx.helper.set_model_props(stamped, dict(sorted(metadata.items())))
    return stamped


def unfolded_batch_norms(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of BatchNormalization nodes that alone read a convolution, and so should have been folded into it."""
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    outputs = {value.name for value in model.graph.output}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        and (maker := makers.get(node.input[0])) is not None
        and maker.op_type in ("Conv", "ConvTranspose")
        and readers[node.input[0]] == 1
        and node.input[0] not in outputs
    )


def _check_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if len(mean) != len(std) or not mean:
        raise InputError("mean and standard deviation need one value for each channel", where="--normalize")
    if not all(map(math.isfinite, (*mean, *std))) or any(value <= 0 for value in std):
        raise InputError(f"mean {mean} and standard deviation {std} cannot be used", where="--normalize")


def _rename_interface(graph: gs.Graph) -> None:
    for tensors, name in ((graph.inputs, INPUT_NAME), (graph.outputs, OUTPUT_NAME)):
        if len(tensors) != 1 or tensors[0].name == name:
            continue
        taken = graph.tensors()
        if name in taken:
            taken[name].name = free_name(f"{name}_inner", taken)
        tensors[0].name = name


def _rename_batch(graph: gs.Graph) -> None:
    symbol = graph.inputs[0].shape[0] if graph.inputs and graph.inputs[0].shape else None
    if not isinstance(symbol, str):
        return
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = [pattern.sub(BATCH_NAME, size) if isinstance(size, str) else size for size in tensor.shape]
