"""From the layers that a runtime tells of to a census: their FLOPs are looked up in the ONNX file they came from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prune2deploy.engines.census import Census
from prune2deploy.engines.onnx_file import load_onnx_proto
from prune2deploy.engines.onnx_flops import layer_costs
from prune2deploy.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One layer as a runtime executes it.

    ``names`` are nodes or values of the ONNX file that were fused into it, as far as the runtime tells; a runtime may
    rename everything, and then there is none.
    """

    precision: str
    names: tuple[str, ...] = ()


def census_of_engine(layers: Iterable[EngineLayer], onnx_path: Path) -> Census:
    """Count the layers of an engine, with their shares of the FLOPs where each layer's can be told.

    FLOPs are those of the file's layers of the same names. What no name claims belongs to the layers without a known
    name; where these are of one precision the shares are exact all the same, otherwise no share is given.
    """
    found = list(layers)
    costs = _CostsByName(onnx_path)
    known = [(layer.precision, costs.take(layer.names)) for layer in found]
    unknown = sorted({precision for precision, flops in known if flops is None})
    rest = costs.untaken
    counted = [(precision, flops or 0) for precision, flops in known]
    if (rest and len(unknown) != 1) or not costs.total:
        return Census.of(((precision, 0) for precision, _ in counted), origin="engine")
    census = Census.of(counted, origin="engine")
    if not rest:
        return census
    flops = {precision: share * (costs.total - rest) for precision, share in census.flops.items()}
    flops[unknown[0]] = flops.get(unknown[0], 0) + rest
    shares = {precision: value / costs.total for precision, value in sorted(flops.items())}
    return Census(layers=census.layers, flops=shares, origin="engine")


class _CostsByName:
    """FLOPs of the file's layers, each of which can be taken once."""

    def __init__(self, onnx_path: Path) -> None:
        model = load_onnx_proto(onnx_path)
        try:
            self._untaken = {layer.name: layer.flops for layer in layer_costs(model)}
        except InputError:  # sizes that only a run tells
            self._untaken = {}
        self.total = sum(self._untaken.values())
        self._makers = {name: node for node in model.graph.node for name in node.output}

    @property
    def untaken(self) -> int:
        """FLOPs of the layers that nothing has taken."""
        return sum(self._untaken.values())

    def take(self, names: Iterable[str]) -> int | None:
        """FLOPs of the layers of these names; None where no name is one."""
        taken = [self._untaken.pop(layer) for name in names if (layer := self._layer_of(name)) is not None]
        return sum(taken) if taken else None

    def _layer_of(self, name: str) -> str | None:
        return next((candidate for candidate in self._upstream(name) if candidate in self._untaken), None)

    def _upstream(self, name: str) -> Iterator[str]:
        """A name, and where it is a value the nodes before it as long as there is only one: what fusing renames."""
        yield name
        maker = self._makers.get(name)
        while maker is not None:
            yield maker.name or maker.output[0]
            before = [made for value in maker.input if (made := self._makers.get(value)) is not None]
            maker = before[0] if len(before) == 1 else None
