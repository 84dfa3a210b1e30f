"""Names that a reader of the file knows: nodes are called after the modules that they come from."""

import ast
from collections.abc import Container, Iterator, Mapping

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

    A module without parts gives its path to its one operator (``layer1.0.relu``), or to the one that multiplies by its
    weights (``layer1.0.conv1``). All other names end in the operator (``layer1.0/Add``, ``blocks.0.attn/Softmax``), and
    what would have the same name as another in a number.
    """
    named = [node for node in graph.nodes if node.name in modules]
    homes = [_home(node, modules[node.name]) for node in named]
    taken = {node.name for node in graph.nodes if node.name not in modules}
    containers = {"", *(outer for home in homes for outer in _outer(home))}
    operators: dict[str, set[str]] = {}
    for node, home in zip(named, homes, strict=True):
        operators.setdefault(home, set()).add(node.op)
    for node, home in zip(named, homes, strict=True):
        alone = home not in containers and (len(operators[home]) == 1 or _multiplies_weights(node))
        node.name = free_name(home if alone else f"{home}/{node.op}".lstrip("/"), taken)
        taken.add(node.name)


def _outer(path: str) -> Iterator[str]:
    """The paths of the modules that hold this one."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


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
