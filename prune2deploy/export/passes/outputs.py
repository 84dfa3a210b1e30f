"""What is built in behind the network: probabilities, and the best classes only."""

import numpy as np
import onnx_graphsurgeon as gs

from prune2deploy.errors import InputError, ModelError
from prune2deploy.export.passes.node_names import free_name

SCORES_NAME = "scores"
CLASSES_NAME = "classes"
POSTPROCESSING = "postprocess/"
"""How the names of these nodes begin."""


def append_softmax(graph: gs.Graph) -> None:
    """Softmax over the classes: dimension 1 of scores (N, classes) and of maps (N, classes, H, W).

    Raises:
        ModelError: the network has another kind of output.
    """
    scores = graph.outputs[0]
    rank = len(scores.shape or ())
    if len(graph.outputs) != 1 or rank not in (2, 4):
        raise ModelError(
            "needs a network with one output of class scores (N, classes) or (N, classes, H, W)",
            where="--softmax",
            hint="export without it",
        )
    name = scores.name
    scores.name = free_name("logits", graph.tensors())
    probabilities = gs.Variable(name, dtype=scores.dtype, shape=scores.shape)
    graph.nodes.append(
        gs.Node("Softmax", f"{POSTPROCESSING}softmax", attrs={"axis": 1}, inputs=[scores], outputs=[probabilities])
    )
    graph.outputs = [probabilities]


def append_top_k(graph: gs.Graph, count: int) -> None:
    """The ``count`` best of the class scores: ``scores`` (N, count), largest first, and ``classes`` (N, count) int64.

    Raises:
        ModelError: the output is not class scores (N, classes).
        InputError: there are fewer classes.
    """
    scores = graph.outputs[0]
    check_top_k(count, tuple(scores.shape or ()) if len(graph.outputs) == 1 else ())
    batch = scores.shape[0]
    for name in (SCORES_NAME, CLASSES_NAME):
        taken = graph.tensors()
        if name in taken:
            taken[name].name = free_name(f"{name}_inner", taken)
    scores.name = free_name("all_scores", graph.tensors())
    best = gs.Variable(SCORES_NAME, dtype=scores.dtype, shape=[batch, count])
    indices = gs.Variable(CLASSES_NAME, dtype=np.dtype(np.int64), shape=[batch, count])
    wanted = gs.Constant(free_name("top_k", graph.tensors()), np.asarray([count], dtype=np.int64))
    graph.nodes.append(
        gs.Node(
            "TopK",
            f"{POSTPROCESSING}top_k",
            attrs={"axis": 1, "largest": 1, "sorted": 1},
            inputs=[scores, wanted],
            outputs=[best, indices],
        )
    )
    graph.outputs = [best, indices]


def check_top_k(count: int, shape: tuple[object, ...]) -> None:
    """Refuse to take the ``count`` best of outputs of this shape, if they are not that many class scores (N, classes).

    Raises:
        ModelError: the outputs are something else.
        InputError: there are fewer classes.
    """
    if len(shape) != 2 or not isinstance(shape[1], int):
        raise ModelError(
            "needs a network with one output of class scores (N, classes)", where="--top-k", hint="export without it"
        )
    if count > shape[1]:
        raise InputError(
            f"the network has {shape[1]} classes", where=f"--top-k {count}", hint=f"pass at most {shape[1]}"
        )
