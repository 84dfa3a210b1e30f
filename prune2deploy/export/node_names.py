"""Names that a reader of the file knows: nodes are called after the modules that they come from."""

import ast
from collections.abc import Container, Mapping

import onnx
import onnx_graphsurgeon as gs

_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_WEIGHT = ".weight"


def modules_of_nodes(model: onnx.ModelProto) -> Mapping[str, str]:
    """Paths of the modules that torch's exporter says its nodes come from, by node name; "" is the model itself.

    A node without that note is absent.
    """
    modules = {}
    for node in model.graph.node:
        note = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), None)
        if note is not None:
            # From outermost to innermost module, then the operation: ['', 'layer1', 'layer1.0', 'relu_1'].
            scopes = ast.literal_eval(note)[:-1]
            known = [scope for scope in scopes if not scope.startswith("_empty_nn_module_stack")]
            modules[node.name] = known[-1] if known else ""
    return modules


def rename_nodes(graph: gs.Graph, modules: Mapping[str, str]) -> None:
    """Call every node of ``modules`` after its module. Names are unique; the others keep theirs.

    A module's only node has the module's path (``layer1.0.conv1``), and so has the one that multiplies by its weights;
    the others carry their operator, too (``blocks.0.attn/Softmax``), and a number from the second on.
    """
    named = [node for node in graph.nodes if node.name in modules]
    homes = [_home(node, modules[node.name]) for node in named]
    taken = {node.name for node in graph.nodes if node.name not in modules}
    bare: dict[str, int] = {}
    for index, (node, home) in enumerate(zip(named, homes, strict=True)):
        if home and (homes.count(home) == 1 or (_multiplies_weights(node) and home not in bare)):
            bare[home] = index
    for index, (node, home) in enumerate(zip(named, homes, strict=True)):
        wanted = home if bare.get(home) == index else f"{home}/{node.op}".lstrip("/")
        node.name = free_name(wanted, taken)
        taken.add(node.name)


def free_name(wanted: str, taken: Container[str]) -> str:
    """``wanted``, or the first of ``wanted_2``, ``wanted_3``... that is not taken."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _home(node: gs.Node, module: str) -> str:
    """The module of a node: that of its weight, where the exporter names the batch norm that was folded into it."""
    weight = node.inputs[1] if _multiplies_weights(node) else None
    if weight is not None and weight.name.endswith(_WEIGHT) and len(weight.outputs) == 1:
        return str(weight.name.removesuffix(_WEIGHT))
    return module


def _multiplies_weights(node: gs.Node) -> bool:
    return node.op in _WEIGHTED and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant)
