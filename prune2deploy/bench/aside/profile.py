"""Where the time of one engine goes, layer by layer, and what bounds each layer."""

import enum
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prune2deploy.engines.capabilities import LayerTime
from prune2deploy.engines.onnx_flops import LayerCost
from prune2deploy.engines.onnx_work import FileWork
from prune2deploy.errors import InputError

SCHEMA_VERSION = 1
_PLAIN = ("whole_ns", "profiled_ns", "beside_ns", "runs", "granule", "told_by", "seconds")

MEMORY_BOUND_BELOW = 8.0
"""FLOPs per byte. Below it a layer waits for memory on every machine of today: CPUs and GPUs can do more FLOPs in the
time in which they move a byte. Many layers above it wait as well; those count as computing."""

SLOWED_ABOVE = 1.2
"""The profiled run over the unprofiled one: above it the profiler itself changes the picture."""

# What engines call the layers that they put in to change a layout or a type.
_MOVES = re.compile("reorder|reformat|transpose|permute|cast|convert|memcpy|copy|quantize|noop", re.IGNORECASE)
# What they call a convolution or a product; where its work is not known, nobody knows what bounds it.
_COMPUTES = re.compile("conv(?!ert)|gemm|matmul|fullyconnected|attention", re.IGNORECASE)
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "Cast"}
# They hold products that are not counted.
_UNCOUNTED = {"LSTM", "GRU", "RNN", "If", "Loop", "Scan", "Attention", "Conv", "ConvTranspose", "Gemm", "MatMul"}


class Kind(enum.StrEnum):
    """What bounds a layer: arithmetic, memory, a change of layout or type that the engine needs, or nobody knows."""

    COMPUTE = "compute"
    MEMORY = "memory"
    REFORMAT = "reformat"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One convolution or matrix product inside a layer. The widths count the channels of all groups."""

    node: str
    flops: int
    input_width: int
    output_width: int
    groups: int

    @classmethod
    def of(cls, cost: LayerCost) -> "Product":
        """From what the ONNX file says of a node."""
        return cls(
            node=cost.name,
            flops=cost.flops,
            input_width=cost.input_width,
            output_width=cost.output_width,
            groups=cost.groups,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledLayer:
    """One layer of an engine: how long it takes, and what it does.

    ``nodes`` are the ONNX nodes that it was made of; ``products`` those of them that cost FLOPs. ``bytes_moved`` is
    what enters and leaves it, None where that is not known.
    """

    name: str
    operator: str
    kind: Kind
    latency_ns: float
    nodes: tuple[str, ...] = ()
    products: tuple[Product, ...] = ()
    bytes_moved: int | None = None

    @property
    def flops(self) -> int:
        """FLOPs of one run."""
        return sum(product.flops for product in self.products)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The layers of one engine at one batch size.

    ``whole_ns`` is the median of the timed runs of the same engine, None where no single runs were timed (a full
    queue). ``profiled_ns`` is what a run took under the profiler, None where that is not like other runs;
    ``beside_ns`` is the median of a few runs without the profiler just before and after it. ``granule`` is the width
    that the engine likes multiples of, None where that is not known. ``told_by`` and ``left_out`` are the engine's
    words for what the figures are and are not; ``seconds`` is what profiling cost.
    """

    layers: tuple[ProfiledLayer, ...]
    whole_ns: float | None
    profiled_ns: float | None
    beside_ns: float
    runs: int
    granule: int | None
    told_by: str
    left_out: tuple[str, ...]
    seconds: float

    def __post_init__(self) -> None:
        if not self.total_ns > 0 or not self.beside_ns > 0:
            raise InputError("a profile holds times above zero", hint="measure again with --profile")

    @property
    def total_ns(self) -> float:
        """What the layers take together, as profiled."""
        return sum(layer.latency_ns for layer in self.layers)

    @property
    def overhead(self) -> float:
        """A profiled run over one that was not, or all layers over that where profiled runs are not like others."""
        return (self.total_ns if self.profiled_ns is None else self.profiled_ns) / self.beside_ns

    @property
    def flops(self) -> int:
        """FLOPs of one run, as far as they are counted."""
        return sum(layer.flops for layer in self.layers)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each layer in a run, in [0, 1]. Shape: (layers,).

        Of the profiled run where there is one, of a run without the profiler otherwise; where the layers together take
        longer, they are shares of what the layers take.
        """
        return tuple(layer.latency_ns / self._base_ns for layer in self.layers)

    @property
    def between(self) -> float:
        """The share of a run that lies between the layers: the call, launches, waiting. 0 where it cannot be told."""
        return max(0.0, 1 - self.total_ns / self._base_ns)

    @property
    def _base_ns(self) -> float:
        return max(self.beside_ns if self.profiled_ns is None else self.profiled_ns, self.total_ns)

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "total_ns": self.total_ns,
            "between_share": self.between,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Profile":
        """From the JSON object that ``to_document`` made; what else lies in it is left alone.

        Raises:
            InputError: it is damaged or of another schema version.
        """
        if document.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"the profile has schema version {document.get('schema_version')}, this p2d reads {SCHEMA_VERSION}",
                hint="measure again with --profile",
            )
        try:
            return cls(
                layers=tuple(_layer_from_document(layer) for layer in document["layers"]),
                left_out=tuple(document["left_out"]),
                **{name: document[name] for name in _PLAIN},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the profile is damaged ({error})", hint="measure again with --profile") from error


def profiled_layer(layer: LayerTime, work: FileWork) -> ProfiledLayer:
    """A layer with the work that the file has for its nodes."""
    products = tuple(Product.of(work.costs[node]) for node in layer.nodes if node in work.costs)
    moved = work.bytes_moved(layer.nodes)
    return ProfiledLayer(
        name=layer.name,
        operator=layer.operator,
        kind=_kind(layer, products, moved, work.operators(layer.nodes)),
        latency_ns=layer.latency_ns,
        nodes=layer.nodes,
        products=products,
        bytes_moved=moved,
    )


def _kind(layer: LayerTime, products: tuple[Product, ...], moved: int | None, operators: frozenset[str]) -> Kind:
    if products:
        intensity = None if not moved else sum(product.flops for product in products) / moved
        return Kind.MEMORY if intensity is not None and intensity < MEMORY_BOUND_BELOW else Kind.COMPUTE
    if _COMPUTES.search(layer.operator):
        return Kind.OTHER
    if not layer.nodes:
        return Kind.REFORMAT if _MOVES.search(layer.operator) else Kind.OTHER
    if operators & _UNCOUNTED or any("::" in name for name in operators):
        return Kind.OTHER
    return Kind.REFORMAT if operators <= _CONVERSIONS else Kind.MEMORY


def _layer_from_document(document: Mapping[str, Any]) -> ProfiledLayer:
    fields = dict(document)
    fields["kind"] = Kind(fields["kind"])
    fields["nodes"] = tuple(fields["nodes"])
    fields["products"] = tuple(Product(**product) for product in fields["products"])
    return ProfiledLayer(**fields)
