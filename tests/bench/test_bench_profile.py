"""Profiles of real engines on small networks, and how the time beyond the FLOPs is split. No timing is asserted."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.bench.aside.attribution import Attribution, Cause, attribute, attribution_of, in_words, padding
from prune2deploy.bench.aside.profile import Kind, Product, Profile, ProfiledLayer, profiled_layer
from prune2deploy.bench.aside.profiling import take_profile
from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.result import BenchResult, read_result, write_result
from prune2deploy.bench.subjects import OFFLINE, BenchOptions, BenchRequest, Subject
from prune2deploy.bench.summary import summarise
from prune2deploy.bench.timed.build import measure_build
from prune2deploy.engines.capabilities import LayerProfile, LayerTime
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_work import FileWork
from prune2deploy.engines.onnxruntime.session import OrtRun
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError, InputError

ENGINES = ["ort-cpu", "openvino"]
SHAPE = (2, 3, 32, 32)


def write_pruned(path: Path, *, width: int) -> Path:
    """A dense, a depthwise and a pointwise convolution, a pooling and a product of 10 classes."""
    rng = np.random.default_rng(width)
    weights = {
        "w1": rng.standard_normal((width, 3, 3, 3)),
        "w2": rng.standard_normal((width, 1, 3, 3)),
        "w3": rng.standard_normal((2 * width, width, 3, 3)),
        "head": rng.standard_normal((2 * width, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="stem_relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="depthwise", pads=[1, 1, 1, 1], group=width),
        helper.make_node("Conv", ["c", "w3"], ["d"], name="wide", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "head"], ["output"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "pruned",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE[1:]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def profile_of(engine: str, path: Path, *, granule: int | None = 16) -> Profile:
    if engine == "openvino":
        pytest.importorskip("openvino")
    built = engine_named(engine).build(path, BuildOptions(batches=(SHAPE[0],)))
    built.bind({"input": np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)})
    try:
        return take_profile(built, path, {"input": SHAPE}, whole_ns=1e6, granule=granule)
    finally:
        built.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_layers_of_a_real_engine_have_their_work_and_kind(engine: str, tmp_path: Path) -> None:
    profile = profile_of(engine, write_pruned(tmp_path / "dense.onnx", width=32))
    by_node = {node: layer for layer in profile.layers for node in layer.nodes}
    wide = by_node["wide"]
    assert wide.flops == 2 * 2 * 32 * 32 * 9 * 32 * 64
    assert [(product.input_width, product.output_width) for product in wide.products] == [(32, 64)]
    assert wide.kind is Kind.COMPUTE
    # A depthwise convolution does 18 FLOPs for each value that it reads and writes.
    assert by_node["depthwise"].kind is Kind.MEMORY
    assert by_node["stem"] is by_node["stem_relu"]
    assert all(layer.kind is Kind.REFORMAT for layer in profile.layers if layer.operator.startswith("Reorder"))
    assert sum(profile.shares) + profile.between == pytest.approx(1)
    assert profile.seconds > 0
    assert 3 <= profile.runs <= 50
    assert Profile.from_document(json.loads(json.dumps(profile.to_document()))) == profile


@pytest.mark.parametrize("engine", ENGINES)
def test_the_losses_of_real_profiles_sum_to_one_minus_yield(engine: str, tmp_path: Path) -> None:
    dense = profile_of(engine, write_pruned(tmp_path / "dense.onnx", width=64))
    pruned = profile_of(engine, write_pruned(tmp_path / "pruned.onnx", width=20))
    found = attribute(pruned, dense, flops_fraction=pruned.flops / dense.flops, speedup=2.0)
    assert sum(found.losses.values()) == pytest.approx(1 - found.flop_yield, abs=1e-9)
    # 20 and 40 channels are no multiples of 16, and dense's 64 and 128 are.
    assert found.losses[Cause.MISALIGNED] > 0
    assert Attribution.from_document(json.loads(json.dumps(found.to_document()))) == found


def layer(
    name: str,
    latency_ns: float,
    *,
    flops: int = 0,
    widths: tuple[int, int] = (64, 64),
    kind: Kind = Kind.COMPUTE,
    groups: int = 1,
    nodes: tuple[str, ...] | None = None,
) -> ProfiledLayer:
    product = Product(node=name, flops=flops, input_width=widths[0], output_width=widths[1], groups=groups)
    return ProfiledLayer(
        name=name,
        operator="Conv" if flops else "Pool",
        kind=kind,
        latency_ns=latency_ns,
        nodes=(name,) if nodes is None else nodes,
        products=(product,) if flops else (),
    )


def profile(*layers: ProfiledLayer, run_ns: float, granule: int | None = 16, beside_ns: float | None = None) -> Profile:
    return Profile(
        layers=layers,
        whole_ns=run_ns,
        profiled_ns=run_ns,
        beside_ns=beside_ns or run_ns,
        runs=5,
        granule=granule,
        told_by="a test",
        left_out=(),
        seconds=0.1,
    )


def test_time_that_follows_flops_leaves_nothing_to_explain() -> None:
    dense = profile(layer("a", 600, flops=600), layer("b", 400, flops=400), run_ns=1000)
    pruned = profile(layer("a", 300, flops=300, widths=(32, 64)), layer("b", 200, flops=200), run_ns=500)
    found = attribute(pruned, dense, flops_fraction=0.5, speedup=2.0)
    assert found.flop_yield == 1
    assert all(abs(share) < 1e-12 for share in found.losses.values())
    assert in_words(found) == "yield 1.00"


def test_each_cause_gets_what_it_caused() -> None:
    dense = profile(
        layer("conv", 600, flops=900),
        layer("last", 100, flops=100),
        layer("pool", 100, kind=Kind.MEMORY),
        layer("copy", 50, kind=Kind.REFORMAT, nodes=()),
        run_ns=1000,
    )
    # Half of conv's FLOPs are gone, none of last's: 550 of 1000 stay.
    pruned = profile(
        layer("conv", 400, flops=450, widths=(64, 36)),
        layer("last", 100, flops=100),
        layer("pool", 100, kind=Kind.MEMORY),
        layer("copy", 50, kind=Kind.REFORMAT, nodes=()),
        run_ns=800,
    )
    found = attribute(pruned, dense, flops_fraction=0.55, speedup=1.25)
    nanoseconds = {cause: share * 800 for cause, share in found.losses.items()}
    # 36 channels are filled up to 48: a quarter of the layer's time goes into padding.
    assert nanoseconds[Cause.MISALIGNED] == pytest.approx(100)
    assert nanoseconds[Cause.RATE] == pytest.approx(400 - 300 - 100)
    assert nanoseconds[Cause.PLACEMENT] == pytest.approx((0.5 - 0.55) * 600 + (1 - 0.55) * 100)
    assert nanoseconds[Cause.MEMORY] == pytest.approx(100 - 55)
    assert nanoseconds[Cause.REFORMAT] == pytest.approx(50 - 27.5)
    assert nanoseconds[Cause.BETWEEN] == pytest.approx(150 - 0.55 * 150)
    assert nanoseconds[Cause.OTHER] == 0
    assert sum(nanoseconds.values()) == pytest.approx(800 * (1 - found.flop_yield))
    assert in_words(found).startswith(
        "yield 0.69: of its time lost to 12% misaligned widths, 8% time between the layers"
    )


layers_of_one_variant = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(list(Kind)), st.floats(1, 1e6), st.integers(1, 200)),
    min_size=1,
    max_size=8,
    unique_by=lambda entry: entry[0],
)


@given(
    own=layers_of_one_variant,
    dense=layers_of_one_variant,
    between=st.floats(0, 1e6),
    flops_fraction=st.floats(0.01, 2),
    speedup=st.floats(0.1, 50),
    granule=st.none() | st.sampled_from([4, 8, 16]),
)
def test_whatever_the_layers_are_the_losses_sum_to_one_minus_yield(
    own: list[Any], dense: list[Any], between: float, flops_fraction: float, speedup: float, granule: int | None
) -> None:
    def made(entries: list[Any]) -> Profile:
        layers = [
            layer(name, ns, flops=1000 * width if kind is Kind.COMPUTE else 0, widths=(64, width), kind=kind)
            for name, kind, ns, width in entries
        ]
        return profile(*layers, run_ns=sum(entry[2] for entry in entries) + between, granule=granule)

    found = attribute(made(own), made(dense), flops_fraction=flops_fraction, speedup=speedup)
    assert math.isclose(sum(found.losses.values()), 1 - found.flop_yield, rel_tol=1e-9, abs_tol=1e-9)
    assert 0 <= found.padded <= 1


def test_a_layer_that_became_bound_by_memory_counts_as_that_in_both() -> None:
    dense = profile(layer("a", 100, flops=100), run_ns=100)
    pruned = profile(layer("a", 90, flops=50, kind=Kind.MEMORY), run_ns=90)
    losses = attribute(pruned, dense, flops_fraction=0.5, speedup=100 / 90).losses
    assert losses[Cause.MEMORY] == pytest.approx(40 / 90)
    assert losses[Cause.RATE] == losses[Cause.PLACEMENT] == 0


def test_a_gain_is_told_as_one() -> None:
    dense = profile(layer("a", 100, flops=100), run_ns=100)
    pruned = profile(layer("a", 40, flops=50), run_ns=45)
    found = attribute(pruned, dense, flops_fraction=0.5, speedup=100 / 45)
    assert in_words(found) == (
        "yield 1.11: of its time lost to 11% time between the layers; gained by 22% smaller layers' higher rate"
    )


def test_layers_that_only_one_variant_has_are_counted_and_told() -> None:
    dense = profile(layer("a", 50, flops=50), layer("b", 50, flops=50), run_ns=100)
    shorter = profile(layer("a", 50, flops=50), run_ns=50)
    found = attribute(shorter, dense, flops_fraction=0.5, speedup=2.0)
    assert found.losses[Cause.PLACEMENT] == pytest.approx(0)
    assert not found.notes[1:]
    renamed = profile(layer("x", 60, flops=50), run_ns=60)
    found = attribute(renamed, dense, flops_fraction=0.5, speedup=100 / 60)
    assert found.losses[Cause.RATE] == pytest.approx((60 - 50) / 60)
    assert "1 computing layers have no counterpart of the same name in dense" in found.notes
    assert sum(found.losses.values()) == pytest.approx(1 - found.flop_yield)


@pytest.mark.parametrize(
    ("own", "other", "groups", "granule", "share"),
    [
        ((64, 36), (64, 64), 1, 16, 1 - 36 / 48),
        ((36, 36), (64, 64), 1, 16, 1 - (36 / 48) ** 2),
        ((3, 36), (3, 64), 1, 16, 1 - 36 / 48),
        ((48, 32), (64, 64), 1, 16, 0.0),
        ((36, 36), (64, 64), 36, 16, 1 - 36 / 48),
        ((3, 10), (3, 10), 1, 16, 0.0),
        ((36, 36), (64, 64), 1, None, 0.0),
    ],
)
def test_padding_counts_the_widths_that_pruning_chose(
    own: tuple[int, int], other: tuple[int, int], groups: int, granule: int | None, share: float
) -> None:
    found = padding(layer("a", 1, flops=1000, widths=own, groups=groups), layer("a", 1, flops=9, widths=other), granule)
    assert found == pytest.approx(share)


def test_what_cannot_be_told_is_said() -> None:
    dense = profile(layer("a", 100, flops=100), run_ns=100, beside_ns=80, granule=None)
    pruned = replace(profile(layer("a", 60, flops=50), run_ns=60, granule=None), profiled_ns=None)
    notes = attribute(pruned, dense, flops_fraction=0.5, speedup=1.4).notes
    assert any("which widths this engine likes is not known" in note for note in notes)
    assert "the profiler slows dense down by 25%: shares are shares of profiled time" in notes
    assert "what lies between the layers of the variant is lost in the cost of profiling" in notes


def test_layers_that_take_longer_than_the_run_are_shares_of_what_they_take() -> None:
    found = Profile(
        layers=(layer("a", 90, flops=9), layer("b", 60, flops=9)),
        whole_ns=None, profiled_ns=None, beside_ns=100, runs=3, granule=8, told_by="", left_out=(), seconds=0,
    )  # fmt: skip
    assert found.shares == pytest.approx((0.6, 0.4))
    assert found.between == 0
    assert found.overhead == 1.5


def test_kinds_follow_the_nodes_of_a_layer(tmp_path: Path) -> None:
    path = write_pruned(tmp_path / "net.onnx", width=16)
    work = FileWork(path, {"input": SHAPE})

    def kind(operator: str, *nodes: str) -> Kind:
        return profiled_layer(LayerTime(name="x", operator=operator, latency_ns=1, nodes=nodes), work).kind

    assert kind("MaxPool", "pool") is Kind.MEMORY
    assert kind("ReorderInput") is Kind.REFORMAT
    assert kind("Reformat") is Kind.REFORMAT
    assert kind("Subgraph") is Kind.OTHER
    assert kind("Conv", "wide") is Kind.COMPUTE
    assert kind("FullyConnectedQuantized", "flatten") is Kind.OTHER
    assert kind("Convert") is Kind.REFORMAT
    # Without sizes, what a product costs is not known.
    unknown = FileWork(path, {"input": ()})
    unknown.costs.clear()
    layer_time = LayerTime(name="x", operator="Conv", latency_ns=1, nodes=("wide",))
    assert profiled_layer(layer_time, unknown).kind is Kind.OTHER


def test_an_engine_without_a_profiler_says_so(tmp_path: Path) -> None:
    class Timer:
        def run(self) -> None:
            raise AssertionError("it is not run")

    with pytest.raises(EngineError, match="does not tell how long its layers take"):
        take_profile(Timer(), tmp_path / "net.onnx", {}, whole_ns=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "said"),
    [((), "tells no layer"), ((LayerTime(name="x", operator="Conv", latency_ns=0.0),), "less time than the profiler")],
)
def test_a_profiler_that_tells_nothing_is_no_profile(layers: tuple[LayerTime, ...], said: str, tmp_path: Path) -> None:
    class Silent:
        def run(self) -> None: ...

        def profile_layers(self, runs: int) -> LayerProfile:
            return LayerProfile(layers=layers, run_ns=None, told_by="nobody")

    with pytest.raises(EngineError, match=said):
        take_profile(Silent(), tmp_path / "net.onnx", {}, whole_ns=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        {"schema_version": 2},
        {"layers": None},
        {"layers": []},
        {"layers": [{"name": "x"}]},
        {"beside_ns": 0},
        {"runs": ...},
    ],
)
def test_a_damaged_profile_is_refused(damage: dict[str, Any]) -> None:
    document = profile(layer("a", 100, flops=100), run_ns=100).to_document()
    document |= damage
    if damage.get("runs") is ...:
        del document["runs"]
    with pytest.raises(InputError, match="profile"):
        Profile.from_document(document)
    with pytest.raises(InputError, match="damaged"):
        Attribution.from_document({"losses": {"witchcraft": 1}})


def request_for(folder: Path, *, engine: str = "ort-cpu", **options: Any) -> BenchRequest:
    subjects = tuple(
        Subject(
            variant=variant,
            precision="fp32",
            onnx_path=write_pruned(folder / f"{variant}.onnx", width=width),
            sha256="0" * 64,
            flops_fraction=fraction,
        )
        for variant, width, fraction in (("dense", 32, 1.0), ("pruned", 12, 0.2))
    )
    fields = {"builds": 1, "rounds": 3, "block_seconds": 0.002, "profile": True, "granules": {"fp32": 16}, **options}
    return BenchRequest(subjects=subjects, engine=engine, batches=(2, 1), options=BenchOptions(**fields))


def test_a_measurement_with_profiles_says_where_the_speed_went(tmp_path: Path) -> None:
    result = run_bench(request_for(tmp_path))
    dense, pruned, *single = result.rows
    for row, batch in ((dense, 2), (single[0], 1)):
        assert row.profile is not None
        by_node = {node: layer for layer in Profile.from_document(row.profile).layers for node in layer.nodes}
        assert by_node["wide"].flops == batch * 2 * 32 * 32 * 9 * 32 * 64
    assert dense.profile is not None
    assert attribution_of(dense) is None
    found = attribution_of(pruned)
    assert found is not None
    assert pruned.flop_yield is not None
    assert found.flop_yield == pytest.approx(pruned.flop_yield)
    assert math.fsum(found.losses.values()) == pytest.approx(1 - pruned.flop_yield)
    assert pruned.profile is not None
    assert Profile.from_document(pruned.profile).whole_ns == pytest.approx(pruned.build_medians_ns[0])
    assert any(note.startswith("profiling took ") for note in result.notes)
    assert read_result(write_result(result, tmp_path / "bench")[0]).rows == result.rows


def measured_here(request: BenchRequest) -> BenchResult:
    """One build in this process."""
    job = BuildJob(request=request, build=0, cpus=None, budget_seconds=None)
    samples = measure_build(job, engine_named(request.engine), tell=lambda fraction, text: None)
    return summarise(request, [samples], environment={})


def test_without_being_asked_nothing_is_profiled(tmp_path: Path) -> None:
    result = measured_here(request_for(tmp_path, profile=False))
    assert [row.profile for row in result.rows] == [None] * 4
    assert not any("profil" in note for note in result.notes)


def test_a_queue_is_profiled_as_single_runs_and_says_so(tmp_path: Path) -> None:
    result = measured_here(request_for(tmp_path, scenario=OFFLINE))
    assert result.rows[0].profile is not None
    profile_taken = Profile.from_document(result.rows[0].profile)
    single = profile_taken.whole_ns is not None
    assert single != any("a full queue" in sentence for sentence in profile_taken.left_out)


def test_an_engine_that_tells_no_layers_is_timed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: OrtRun, runs: int) -> None:
        raise EngineError("its profiler is not to be had here")

    monkeypatch.setattr(OrtRun, "profile_layers", refuse)
    result = measured_here(request_for(tmp_path))
    assert [row.profile for row in result.rows] == [None] * 4
    assert "no profile of dense, pruned: its profiler is not to be had here" in result.notes
