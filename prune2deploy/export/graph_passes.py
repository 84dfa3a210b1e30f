"""What deployment asks of a graph beyond what the exporter writes: names, built-in preprocessing, no leftovers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from prune2deploy.errors import InputError, ModelError
from prune2deploy.export.zeros import drop_added_zeros

INPUT_NAME = "input"
OUTPUT_NAME = "output"
BATCH_NAME = "batch"
PRODUCER = "prune2deploy"

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPasses:
    """What is built into the graph.

    ``normalize`` is (mean, standard deviation) by channel: the file then takes images in [0, 1] and computes
    (x − mean) / std itself. ``softmax`` turns class scores into probabilities.
    """

    normalize: Normalization | None = None
    softmax: bool = False

    def __post_init__(self) -> None:
        if self.normalize is None:
            return
        mean, std = self.normalize
        if len(mean) != len(std) or not mean:
            raise InputError("mean and standard deviation need one value for each channel", where="--normalize")
        if not all(np.isfinite(mean)) or not all(np.isfinite(std)) or any(value <= 0 for value in std):
            raise InputError(f"mean {mean} and standard deviation {std} cannot be used", where="--normalize")


def apply_passes(model: onnx.ModelProto, passes: GraphPasses) -> onnx.ModelProto:
    """Rename the interface, build in what ``passes`` asks for, and drop what nothing reads.

    A single input is called ``input`` and a single output ``output``; several keep the model's names. A dynamic
    batch is called ``batch`` (the exporter calls it s77 or so). Nodes keep their names. The exporter's notes on
    each node go, because they hold paths of the machine that exported; so does the file's metadata, which is
    written afterwards with ``with_metadata``.

    Raises:
        ModelError: the network has no input or output of the kind that a pass needs.
    """
    graph = gs.import_onnx(model)
    # GraphSurgeon's own logger prints; a failed fold is left as it is, which is what we want.
    with gs.logger.G_LOGGER.suppress():
        graph.fold_constants()
    drop_added_zeros(graph)
    _rename_interface(graph)
    _rename_batch(graph)
    if passes.normalize is not None:
        _prepend_normalization(graph, *passes.normalize)
    if passes.softmax:
        _append_softmax(graph)
    with gs.logger.G_LOGGER.suppress():
        graph.cleanup().toposort()
    result: onnx.ModelProto = gs.export_onnx(graph)
    result.ir_version = model.ir_version
    return onnx.shape_inference.infer_shapes(result)


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


def _rename_interface(graph: gs.Graph) -> None:
    for tensors, name in ((graph.inputs, INPUT_NAME), (graph.outputs, OUTPUT_NAME)):
        if len(tensors) != 1 or tensors[0].name == name:
            continue
        taken = graph.tensors()
        if name in taken:
            taken[name].name = _free_name(f"{name}_inner", taken)
        tensors[0].name = name


def _rename_batch(graph: gs.Graph) -> None:
    symbol = graph.inputs[0].shape[0] if graph.inputs and graph.inputs[0].shape else None
    if not isinstance(symbol, str):
        return
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = [pattern.sub(BATCH_NAME, size) if isinstance(size, str) else size for size in tensor.shape]


def _prepend_normalization(graph: gs.Graph, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Put (x − mean) · (1 / std) in front of the first input; multiplying is cheaper than dividing."""
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape or ()) != 4:
        raise ModelError(
            "needs a network with one image input (N, C, H, W)", where="--normalize", hint="export without it"
        )
    image = graph.inputs[0]
    channels = image.shape[1]
    if channels != len(mean):
        raise ModelError(
            f"{len(mean)} means were given and the input has {channels} channels",
            where="--normalize",
            hint="give one for each channel",
        )
    taken = graph.tensors()
    shift = np.asarray(mean, dtype=np.float64).reshape(1, -1, 1, 1)
    scale = 1.0 / np.asarray(std, dtype=np.float64).reshape(1, -1, 1, 1)
    centred = gs.Variable(_free_name("normalize_centred", taken), dtype=image.dtype, shape=image.shape)
    scaled = gs.Variable(_free_name("normalize_scaled", taken), dtype=image.dtype, shape=image.shape)
    for node in list(image.outputs):
        node.inputs = [scaled if tensor is image else tensor for tensor in node.inputs]
    graph.nodes.append(
        gs.Node(
            "Sub",
            "normalize_sub",
            inputs=[image, gs.Constant(_free_name("normalize_mean", taken), shift.astype(image.dtype))],
            outputs=[centred],
        )
    )
    graph.nodes.append(
        gs.Node(
            "Mul",
            "normalize_mul",
            inputs=[centred, gs.Constant(_free_name("normalize_scale", taken), scale.astype(image.dtype))],
            outputs=[scaled],
        )
    )


def _append_softmax(graph: gs.Graph) -> None:
    """Softmax over the classes: dimension 1 of scores (N, classes) and of maps (N, classes, H, W)."""
    scores = graph.outputs[0]
    rank = len(scores.shape or ())
    if len(graph.outputs) != 1 or rank not in (2, 4):
        raise ModelError(
            "needs a network with one output of class scores (N, classes) or (N, classes, H, W)",
            where="--softmax",
            hint="export without it",
        )
    scores.name = _free_name("scores", graph.tensors())
    probabilities = gs.Variable(OUTPUT_NAME, dtype=scores.dtype, shape=scores.shape)
    graph.nodes.append(gs.Node("Softmax", "softmax", attrs={"axis": 1}, inputs=[scores], outputs=[probabilities]))
    graph.outputs = [probabilities]


def _free_name(wanted: str, taken: Mapping[str, object]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name
