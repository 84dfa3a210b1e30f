"""INT8 from a finished fp32 ONNX file: static QDQ, weights by channel, by ONNX Runtime's quantizer.

Two styles, because TensorRT and the engines for CPUs want the quantisers at different places and of different kinds
(``docs/decisions/0018-int8-styles.md``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from prune2deploy.errors import InputError, ModelError
from prune2deploy.export.int8.calibrate import activation_ranges, check_images, known_method
from prune2deploy.export.int8.nodes import NodeChoice, WeightLayer, carried_through, choose_nodes
from prune2deploy.export.int8.quiet import hushed
from prune2deploy.progress import SILENT, Progress
from prune2deploy.storage import atomic_path

Style = Literal["symmetric", "affine"]
STYLES: tuple[Style, ...] = ("symmetric", "affine")
GRANULE = 32
"""Channels that the int8 units of GPUs compute at a time."""

_CPU_ENGINES = ("ort-cpu", "openvino")
_BYTES_LIMIT = 2**31 - 2**20
_OPSET = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOptions:
    """How a network is brought to int8.

    ``calibration`` is how the range of an activation follows from images: "minmax", "entropy" or "percentile".
    ``ends`` False leaves the first and last weight layers float. ``style`` "symmetric" is what TensorRT takes, and
    runs everywhere; "affine" is faster on CPUs and TensorRT refuses it.
    """

    calibration: str = "minmax"
    ends: bool = True
    style: Style = "symmetric"

    def __post_init__(self) -> None:
        known_method(self.calibration)
        if self.style not in STYLES:
            raise InputError(f"{self.style!r} is no style of int8", hint=f"choose {' or '.join(STYLES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What became of the weight layers: those in int8, those left float, and those in int8 under 32 channels."""

    layers: tuple[str, ...]
    floating: tuple[str, ...]
    narrow: tuple[str, ...]


def style_for(engine: str | None) -> Style:
    """The style that an engine runs best: "affine" for the CPU ones, else (and for no engine) "symmetric"."""
    return "affine" if engine in _CPU_ENGINES else "symmetric"


def quantize_onnx(
    source: Path,
    target: Path,
    images: NDArray[Any],
    options: QuantizationOptions,
    *,
    progress: Progress = SILENT,
) -> Quantized:
    """Write ``source``, a finished fp32 ONNX file, as an int8 one to ``target``, whole or not at all.

    ``images`` (N, ...) are calibration images as the file takes them. Convolutions and products with stored weights
    compute in int8: weights by channel, signed and symmetric; activations by tensor. Names, opset and metadata are the
    source's. The same file and images give the same bytes. Weights outside the source file are read; the target holds
    all of its own. A network with layers of fewer than 32 channels is noted, since it gains little.

    Raises:
        InputError: the source is no ONNX file.
        DataError: the images cannot calibrate it.
        ModelError: it holds nothing that int8 can compute, has several inputs, or is over 2 GB.
        StorageError: the target cannot be written.
    """
    model = _loaded(source)
    shape = tuple(size.dim_value or None for size in model.graph.input[0].type.tensor_type.shape.dim)
    check_images(images, shape)
    choice = choose_nodes(model.graph, ends=options.ends)
    if not choice.layers:
        raise ModelError(
            "holds no convolution or product with stored weights that int8 could compute",
            where=source.name,
            hint="let the ends be quantised too" if choice.floating else "export it at another precision",
        )
    quantized = _quantized(model, images, choice, options, progress)
    _check(quantized, where=source.name)
    with atomic_path(target) as partial:
        partial.write_bytes(quantized.SerializeToString(deterministic=True))
    narrow = sorted((layer for layer in choice.layers if layer.channels < GRANULE), key=_channels)
    if narrow:
        progress.note(_narrow_note(target.name, narrow, len(choice.layers)))
    return Quantized(
        layers=tuple(layer.name for layer in choice.layers),
        floating=tuple(layer.name for layer in choice.floating),
        narrow=tuple(layer.name for layer in narrow),
    )


def _loaded(source: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(source)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"cannot be read ({str(error).splitlines()[0]})", where=str(source), hint="export it again"
        ) from error
    if len(model.graph.input) != 1:
        raise ModelError(
            f"has {len(model.graph.input)} inputs, and int8 is calibrated through one",
            where=source.name,
            hint="export it at another precision",
        )
    bytes_total = sum(initializer.ByteSize() for initializer in model.graph.initializer)
    if bytes_total > _BYTES_LIMIT:
        raise ModelError(
            f"its weights take {bytes_total / 1e9:.1f} GB, and int8 is made of networks of up to 2.1 GB",
            where=source.name,
            hint="prune it further, or export it as fp16",
        )
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    if opset < _OPSET:
        raise InputError(
            f"is of opset {opset}, and weights are quantised by channel from opset {_OPSET} on",
            where=str(source),
            hint="export it again",
        )
    return onnx.shape_inference.infer_shapes(model)


def _quantized(
    model: onnx.ModelProto,
    images: NDArray[Any],
    choice: NodeChoice,
    options: QuantizationOptions,
    progress: Progress,
) -> onnx.ModelProto:
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    symmetric = options.style == "symmetric"
    names = [layer.node for layer in choice.layers] + [add.node for add in choice.adds]
    if not symmetric:
        names += carried_through(model.graph)
    types = {node.name: node.op_type for node in model.graph.node}
    operators = {types[name] for name in names}
    ranges = activation_ranges(
        model, images, operators=operators, method=options.calibration, symmetric=symmetric, progress=progress
    )
    original = onnx.ModelProto()
    original.CopyFrom(model)
    with hushed():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=names,
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(operators),
            extra_options=_symmetric_options(operators) if symmetric else _affine_options(),
        )
        result: onnx.ModelProto = quantizer.quantize_model()
    if symmetric:
        _free_fused_inputs(result, choice)
    return _finished(result, original)


def _symmetric_options(operators: set[str]) -> dict[str, Any]:
    """Quantisers before what computes in int8, none behind it: a convolution fuses with what follows it."""
    return {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "DedicatedQDQPair": True,
        "OpTypesToExcludeOutputQuantization": sorted(operators),
    }


def _affine_options() -> dict[str, Any]:
    """Quantisers on both sides, since kernels for CPUs write bytes; products go on in float, which costs nothing."""
    return {
        "ActivationSymmetric": False,
        "WeightSymmetric": True,
        "QuantizeBias": True,
        "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
    }


def _free_fused_inputs(model: onnx.ModelProto, choice: NodeChoice) -> None:
    """Let residual adds read a convolution's result unquantised: the addition happens before it is rounded."""
    makers = {output: node for node in model.graph.node for output in node.output}
    adds = {add.node: add for add in choice.adds}
    for node in model.graph.node:
        if node.name in adds:
            position = adds[node.name].fused
            dequantize = makers[node.input[position]]
            node.input[position] = makers[dequantize.input[0]].input[0]


def _finished(model: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Without what nothing reads, sorted, and with the identity of the file that it was made from."""
    graph = gs.import_onnx(model)
    with gs.logger.G_LOGGER.suppress():
        graph.cleanup().toposort()
    finished: onnx.ModelProto = gs.export_onnx(graph)
    finished.ir_version = original.ir_version
    finished.producer_name = original.producer_name
    finished.producer_version = original.producer_version
    del finished.metadata_props[:]
    finished.metadata_props.extend(original.metadata_props)
    return onnx.shape_inference.infer_shapes(finished)


def _check(model: onnx.ModelProto, *, where: str) -> None:
    """Refuse what an engine would stumble over: an invalid graph, or a scale that is not a positive number."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"became an invalid network as int8 ({str(error).strip().splitlines()[0]})",
            where=where,
            hint="update onnx and onnxruntime",
        ) from error
    stored = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale = onnx.numpy_helper.to_array(stored[node.input[1]])
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                raise ModelError(
                    f"the range of {node.input[0]!r} cannot be quantised (scale {scale.min():g})",
                    where=where,
                    hint="calibrate on more images, or with another --calibration",
                )


def _channels(layer: WeightLayer) -> int:
    return layer.channels


def _narrow_note(name: str, narrow: Sequence[WeightLayer], layers: int) -> str:
    worst = narrow[0]
    return (
        f"{name}: {len(narrow)} of {layers} int8 layers have fewer than {GRANULE} channels "
        f"(fewest: {worst.name} with {worst.channels}); int8 gains little there"
    )
