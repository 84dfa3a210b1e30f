"""What is built in behind the network: probabilities, and the best classes only."""

import numpy as np
import onnx_graphsurgeon as gs

from prune2deploy.errors import InputError, ModelError
from prune2deploy.export.node_names import free_name

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
    if len(graph.outputs) != 1 or len(scores.shape or ()) != 2 or not isinstance(scores.shape[1], int):
        raise ModelError(
            "needs a network with one output of class scores (N, classes)", where="--top-k", hint="export without it"
        )
    batch, classes = scores.shape
    if count > classes:
        raise InputError(f"the network has {classes} classes", where=f"--top-k {count}", hint=f"pass at most {classes}")
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
