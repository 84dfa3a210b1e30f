"""An ONNX file as NVIDIA's parser reads it, and its refusals in words that name the operator and its node."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune2deploy.engines.onnx_file import load_onnx_proto
from prune2deploy.engines.tensorrt.library import last_error
from prune2deploy.errors import EngineError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedNetwork:
    """A network and what it needs to live: the parser owns the weights, the builder the network."""

    builder: Any
    network: Any
    parser: Any

    def details(self) -> dict[str, Any]:
        """How many layers the parser made, by type and by the type of their outputs."""
        layers = [self.network.get_layer(number) for number in range(self.network.num_layers)]
        outputs = Counter(layer.get_output_type(number).name for layer in layers for number in range(layer.num_outputs))
        return {
            "layers": len(layers),
            "layers_by_type": dict(sorted(Counter(layer.type.name for layer in layers).items())),
            "outputs_by_type": dict(sorted(outputs.items())),
        }


def parsed_network(library: Any, name: str, path: Path, logger: Any) -> ParsedNetwork:
    """Parse a file into a strongly typed network.

    Raises:
        EngineError: the library cannot start here, or lacks an operator (named with its node).
        InputError: the parser cannot read the file.
    """
    try:
        builder = library.Builder(logger)
    # What the bindings raise where the library cannot start, for instance TensorRT without a driver.
    except (RuntimeError, TypeError) as error:
        reason = last_error(logger, str(error))
        raise EngineError(f"cannot start ({reason})", where=name, hint="see `p2d doctor`") from error
    network = builder.create_network(_creation_flags(library))
    parser = library.OnnxParser(network, logger)
    # From the file, not from bytes, so that external weights are found.
    if not parser.parse_from_file(str(path)) or not network.num_layers:
        raise _refusal(parser, name, path, logger)
    return ParsedNetwork(builder=builder, network=network, parser=parser)


def blamed_node(message: str, path: Path) -> str | None:
    """The node of the file that a message of the builder names, as ``operator Conv (node 'x')``; None for none.

    Builders speak of layers, which carry the names of the nodes that they were made of, some with a number behind.
    """
    named = [
        node
        for node in load_onnx_proto(path).graph.node
        if node.name and re.search(rf"(?<![\w./]){re.escape(node.name)}(?:_\d+)?(?![\w./])", message)
    ]
    if not named:
        return None
    node = max(named, key=lambda node: len(node.name))
    return f"operator {node.op_type} (node {node.name!r})"


def _creation_flags(library: Any) -> int:
    """STRONGLY_TYPED where the library still asks for it; TensorRT 11 has no other kind of network."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refusal(parser: Any, name: str, path: Path, logger: Any) -> EngineError | InputError:
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        operator = error.node_operator()
        if operator:
            description = " ".join(error.desc().split())
            # The parser says "false" where its check is simply that the operator is not there.
            reason = f": {description}" if " " in description else ""
            hint = "replace the operator in the model, or name another --engine"
            if "zero point" in description:
                hint = "it was quantised for CPUs; export it with --engine trt, which quantises symmetrically"
            return EngineError(
                f"{name} cannot build operator {operator} (node {error.node_name() or error.node()!r}){reason}",
                where=str(path),
                hint=hint,
            )
    reason = last_error(logger, "it found no layers")
    return InputError(f"cannot be read by {name} ({reason})", where=str(path), hint="export it again")
