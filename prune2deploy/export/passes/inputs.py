"""What is built in before the network: normalisation, and the way from bytes as cameras give them."""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from prune2deploy.errors import ModelError
from prune2deploy.export.passes.node_names import free_name
from prune2deploy.export.passes.resizing import Resizing

PREPROCESSING = "preprocess/"
"""How the names of these nodes begin."""

_LARGEST_BYTE = 255


def prepend_normalization(graph: gs.Graph, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Put (x − mean) · (1 / std) before the input; multiplying is cheaper than dividing.

    Raises:
        ModelError: the network has no single image input (N, C, H, W), or another number of channels.
    """
    image = _image_input(graph, len(mean), where="--normalize")
    whole = gs.Variable(image.name, dtype=image.dtype, shape=image.shape)
    image.name = free_name("normalized", graph.tensors())
    graph.inputs = [whole]
    _normalize(graph, whole, image, mean, std)


def prepend_images(
    graph: gs.Graph, mean: tuple[float, ...], std: tuple[float, ...], *, source_size: tuple[int, int] | None
) -> None:
    """Take uint8 images (N, H, W, C) instead: channels first, resized to the network's size, normalised.

    ``mean`` and ``std`` are those of images in [0, 1]. ``source_size`` is (H, W), None for the network's own.

    Raises:
        ModelError: as ``prepend_normalization``, or the network's image size is not fixed.
    """
    image = _image_input(graph, len(mean), where="--input uint8-nhwc")
    batch, channels, *sizes = image.shape
    if not all(isinstance(size, int) for size in sizes):
        raise ModelError(
            f"needs a network with a fixed image size, not {sizes}", where="--input uint8-nhwc", hint="export as nchw"
        )
    resizing = Resizing(source=source_size or (sizes[0], sizes[1]), target=(sizes[0], sizes[1]))
    source = [batch, *resizing.source, channels]
    whole = gs.Variable(image.name, dtype=np.dtype(np.uint8), shape=source)
    image.name = free_name("normalized", graph.tensors())
    graph.inputs = [whole]
    # TensorRT takes bytes only where a Cast reads them at once.
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(image.dtype))
    last = _append(graph, "Cast", "cast", whole, source, image.dtype, to=to)
    last = _append(
        graph, "Transpose", "transpose", last, [batch, channels, *resizing.source], image.dtype, perm=[0, 3, 1, 2]
    )
    last = _resize(graph, last, resizing)
    # The range of bytes goes into the constants, so that scaling to [0, 1] costs nothing.
    bytes_mean, bytes_std = (tuple(_LARGEST_BYTE * value for value in values) for values in (mean, std))
    _normalize(graph, last, image, bytes_mean, bytes_std)


def _image_input(graph: gs.Graph, channels: int, *, where: str) -> gs.Variable:
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape or ()) != 4:
        raise ModelError("needs a network with one image input (N, C, H, W)", where=where, hint="export without it")
    image = graph.inputs[0]
    if image.shape[1] != channels:
        raise ModelError(
            f"{channels} means were given and the input has {image.shape[1]} channels",
            where=where,
            hint="give one for each channel",
        )
    return image


def _resize(graph: gs.Graph, images: gs.Variable, resizing: Resizing) -> gs.Variable:
    outer = images.shape[:2]
    if resizing.blocks != (1, 1):
        images = _append(
            graph,
            "AveragePool",
            "average",
            images,
            [*outer, *resizing.averaged],
            images.dtype,
            kernel_shape=list(resizing.blocks),
            strides=list(resizing.blocks),
            pads=list(resizing.pads),
            count_include_pad=0,
        )
    if resizing.averaged == resizing.target:
        return images
    # TensorRT refuses Resize by sizes of some axes only, so the factors of all four are given.
    scales = _constant(graph, "resize_scales", np.asarray([1, 1, *resizing.factors], dtype=np.float32))
    return _append(
        graph,
        "Resize",
        "resize",
        images,
        [*outer, *resizing.target],
        images.dtype,
        others=(gs.Variable.empty(), scales),
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )


def _normalize(
    graph: gs.Graph, source: gs.Variable, target: gs.Variable, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """``target`` becomes (source − mean) · (1 / std), the constants in the type of ``target``."""
    shift = np.asarray(mean, dtype=np.float64).reshape(1, -1, 1, 1)
    scale = 1.0 / np.asarray(std, dtype=np.float64).reshape(1, -1, 1, 1)
    mean_constant = _constant(graph, "normalize_mean", shift.astype(target.dtype))
    centred = _append(graph, "Sub", "subtract", source, source.shape, target.dtype, others=(mean_constant,))
    scale_constant = _constant(graph, "normalize_scale", scale.astype(target.dtype))
    graph.nodes.append(gs.Node("Mul", f"{PREPROCESSING}multiply", inputs=[centred, scale_constant], outputs=[target]))


def _append(
    graph: gs.Graph,
    operator: str,
    name: str,
    source: gs.Variable,
    shape: list[int | str],
    dtype: object,
    *,
    others: tuple[gs.Tensor, ...] = (),
    **attributes: object,
) -> gs.Variable:
    """Append a node that reads ``source`` and ``others``, and return what it makes."""
    made = gs.Variable(free_name(f"{PREPROCESSING}{name}", graph.tensors()), dtype=dtype, shape=shape)
    graph.nodes.append(
        gs.Node(operator, f"{PREPROCESSING}{name}", attrs=attributes, inputs=[source, *others], outputs=[made])
    )
    return made


def _constant(graph: gs.Graph, name: str, values: NDArray[Any]) -> gs.Constant:
    return gs.Constant(free_name(name, graph.tensors()), values)
