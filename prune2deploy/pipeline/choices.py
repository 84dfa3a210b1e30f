"""What the user may name in this version: one line a name, with the words that the help shows.

Light on purpose: the command line reads it before any stage is imported. A name stands here exactly when the
stage that it belongs to has registered it (a test compares the two).
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from prune2deploy import __version__
from prune2deploy.errors import InputError

PRUNING_METHODS: Mapping[str, str] = {
    "l1": "sum of the absolute weights of a channel",
    "l2": "Euclidean norm of the weights of a channel",
    "bn-scale": "absolute scale of the batch norm behind a channel",
    "lamp": "squared weights of a channel over those of it and all larger ones of its layer",
    "fpgm": "distance of the weights of a channel from those of the others of its layer",
    "taylor": "squared first-order change of the loss (needs data)",
    "taylor-bn": "the same, through the scale and shift of the batch norm (needs data)",
    "fisher": "squared gradient of a gate on the channel, per sample (needs data)",
    "random": "chance, as the control",
}
DENSE_TRAINING = "dense"
TRAINING_METHODS: Mapping[str, str] = {
    DENSE_TRAINING: "train everything, remove nothing",
    "3sp": "cut once before training, by sensitivity per FLOP",
    "epi": "cut once during training, when the widths that would stay are stable",
    "prunetrain": "push weights to zero, and cut what dies every few epochs",
    "activation-density": "cut each layer to the share of its activations that are not zero",
}
METHODS_WITH_TARGET = ("3sp", "epi")
"""Methods of training that need a target; the others size the network themselves and take one as a stop."""
DEFAULT_RANKING = "global"
OPTIMAL_RANKING = "optimal"
RANKINGS: Mapping[str, str] = {
    DEFAULT_RANKING: "channels of all layers compete",
    "per-layer": "every layer gives the same share",
    OPTIMAL_RANKING: "of all plans within the targets the one that loses least, by an integer program",
}
SCOPES: Mapping[str, str] = {
    "all": "every channel that can leave",
    "inside-blocks": "residual streams keep their widths",
}
BACKENDS: Mapping[str, str] = {
    "auto": "modules are sliced, unless sizes written in the code stand in the way",
    "module": "slice the modules, whose class stays",
    "graph": "edit the exported graph, so that sizes written in the code can change",
}
ATTENTION: Mapping[str, str] = {
    "heads": "whole heads leave",
    "head-dim": "the same positions leave every head",
}
VARIANTS: Mapping[str, str] = {
    "dense": "the model as it came",
    "pruned": "pruned to the target and fine-tuned",
    "reduced": "the same architecture uniformly narrower, trained from scratch",
    "bottleneck": "only the insides of blocks uniformly narrower, trained from scratch",
    "scratch": "the pruned architecture with fresh weights, trained from scratch",
}
DEFAULT_VARIANTS = ("dense", "pruned", "reduced")
PARETO_VARIANTS = ("dense", "pruned")
"""Those that a family of several pruned networks has: the others are made to compare with one."""
SCENARIOS: Mapping[str, str] = {
    "single-stream": "one input at a time, judged by the 90th percentile",
    "offline": "all inputs at once, judged by throughput",
}
ENGINES: Mapping[str, str] = {
    "auto": "the best that runs here",
    "ort-cpu": "ONNX Runtime on the CPU",
    "openvino": "OpenVINO on the CPU",
    "ort-cuda": "ONNX Runtime on the GPU",
    "trt": "TensorRT",
    "trt-rtx": "TensorRT for RTX",
    "torch": "PyTorch, eager",
    "torch-compile": "torch.compile",
    "torch-cuda-graph": "PyTorch as a CUDA graph",
}
PRECISIONS: Mapping[str, str] = {
    "fp32": "single precision",
    "tf32": "the same file, products rounded to 10 bits by the engine",
    "fp16": "half precision",
    "bf16": "bfloat16",
    "int8": "8-bit integers (needs data to calibrate)",
}
INPUT_FORMATS: Mapping[str, str] = {
    "nchw": "float images, channels first",
    "uint8-nhwc": "bytes, channels last, as cameras and decoders give them",
}
IO_PRECISIONS: Mapping[str, str] = {"fp32": "float32 whatever the precision", "same": "that of the file"}
CALIBRATIONS: Mapping[str, str] = {
    "minmax": "the largest value seen",
    "entropy": "the range that keeps the distribution best",
    "percentile": "the range of 99.999% of the values",
}
OPTIMIZERS: Mapping[str, str] = {"sgd": "momentum SGD", "adamw": "AdamW"}
SCHEDULES: Mapping[str, str] = {
    "cosine": "down to zero along a cosine",
    "step": "divided at milestones",
    "constant": "as it starts",
}
MIXED_PRECISIONS: Mapping[str, str] = {"no": "fp32", "fp16": "half, with loss scaling", "bf16": "bfloat16"}


def known(name: str, choices: Iterable[str], *, where: str) -> str:
    """``name`` itself, if it is one of ``choices``.

    Raises:
        InputError: it is not; the message lists the choices and, for a slip of the finger, the nearest.
    """
    names = tuple(choices)
    if name in names:
        return name
    nearest = get_close_matches(name, names, n=1)
    guess = f"did you mean {nearest[0]}? " if nearest else ""
    raise InputError(
        f"is not available in this version ({__version__})",
        where=f"{where} {name}".strip(),
        hint=f"{guess}choose {_either(names)}",
    )


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
