"""Exported programs of half precision: float16 or bfloat16 throughout, with batch norms folded beforehand."""

import copy
from collections.abc import Callable

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, fx, nn

from prune2deploy.errors import ModelError
from prune2deploy.export.fold import fold_batch_norms

HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""The precisions that need a copy of the model in another type; fp32 and tf32 files hold float32."""

OPSETS = {"bf16": 22}
"""The opset that a precision needs, where torch's default is too early: before 22, Conv and pools forbid bfloat16."""

Trace = Callable[[nn.Module, torch.dtype], torch.export.ExportedProgram]


def half_program(model: nn.Module, precision: str, trace: Trace) -> torch.export.ExportedProgram:
    """Export ``model``, a float32 copy on the CPU in evaluation mode, at "fp16" or "bf16".

    ``trace`` exports a module with an example input of a type. A copy of half precision is traced, so that code which
    asks for float32 itself keeps it there. Code that makes float32 values of its own (an ``arange``, a table that is
    no buffer) and mixes them with the rest cannot run so, or makes float32 of all that follows: then the float32
    model is traced, and everything in its graph made half.

    Raises:
        ModelError: neither can be exported; the operator or line is named.
    """
    half = HALF_TYPES[precision]
    originals = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    try:
        program = trace(copy.deepcopy(model).to(half), half)
    except ModelError as error:
        try:
            program = _retyped(model, half, trace)
        except ModelError:
            # The line of the model's own code is in the first error; that of a graph says nothing to its author.
            raise error from None
    else:
        if _mixes_types(program, half):
            program = _retyped(model, half, trace)
    fold_batch_norms(program, originals)
    return program


def _mixes_types(program: torch.export.ExportedProgram, half: torch.dtype) -> bool:
    """Whether an operator reads both half and float32 tensors; single numbers change no type, and do not count."""
    for node in program.graph.nodes:
        read = (one.meta.get("val") for one in node.all_input_nodes)
        types = {value.dtype for value in read if isinstance(value, Tensor) and value.dim()}
        if node.op == "call_function" and {half, torch.float32} <= types:
            return True
    return False


def _retyped(model: nn.Module, half: torch.dtype, trace: Trace) -> torch.export.ExportedProgram:
    """The float32 export with every float32 tensor and every mention of float32 made half, exported once more."""
    module = trace(model, torch.float32).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, lambda value: half if value is torch.float32 else value)
        node.kwargs = fx.node.map_aggregate(node.kwargs, lambda value: half if value is torch.float32 else value)
    module.recompile()
    _halve_attributes(module, half)
    return trace(module, half)


def _halve_attributes(module: nn.Module, half: torch.dtype) -> None:
    """Parameters, buffers, and the constants that graphs keep as plain attributes."""
    module.to(half)
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.dtype == torch.float32:
                setattr(part, name, value.to(half))


def float32_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the convolutions and matrix products of a file whose result is float32."""
    values = (*model.graph.output, *model.graph.value_info)
    float32 = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.output[0] in float32
    )
