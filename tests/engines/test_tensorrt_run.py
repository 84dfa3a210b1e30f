"""TensorRT on a GPU. These tests run where there is one: pytest -m gpu."""

from pathlib import Path

import numpy as np
import pytest

from prune2deploy.engines.capabilities import DeviceClock, InputCopies, Queue
from prune2deploy.engines.engine import BuildOptions, Engine, TensorRTOptions
from prune2deploy.engines.parity import check_parity
from prune2deploy.engines.registry import engine_named
from prune2deploy.engines.tensorrt.engine_file import read_record
from prune2deploy.engines.tensorrt.family import TensorRTEngine
from prune2deploy.engines.tensorrt.run import TensorRTRun
from prune2deploy.errors import EngineError, InputError
from prune2deploy.evaluation import EvaluationSet

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["trt", "trt-rtx"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found = engine_named(request.param)
    if not found.availability().runs:
        pytest.skip(f"{request.param}: {found.availability().reason}")
    return found


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_it_computes_the_network(engine: Engine, precision: str, write_network, evaluation: EvaluationSet) -> None:
    stored = "fp32" if precision == "tf32" else precision
    built = engine.build(write_network(precision=stored), BuildOptions(precision=precision, batches=(1, 7)))
    check_parity(built, evaluation, "dense", precision=precision)
    told = built.inspect()
    assert told["layers"] > 0
    assert told["cuda_graph"]
    built.close()
    built.close()


def test_new_inputs_of_the_same_shape_are_seen_by_the_captured_graph(engine: Engine, write_network, reference) -> None:
    built = engine.build(write_network(), BuildOptions(batches=(4,)))
    for seed in (1, 2):
        inputs = np.random.default_rng(seed).standard_normal((4, 3, 8, 8)).astype(np.float32)
        built.bind({"input": inputs})
        built.run()
        np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-3, atol=1e-4)


def test_a_batch_without_profile_and_another_type_are_refused(engine: Engine, write_network) -> None:
    built = engine.build(write_network(), BuildOptions(batches=(2,)))
    with pytest.raises(EngineError, match="--batch 3"):
        built.bind({"input": np.zeros((3, 3, 8, 8), np.float32)})
    with pytest.raises(InputError, match="takes float32, not float64"):
        built.bind({"input": np.zeros((2, 3, 8, 8))})


def test_a_range_takes_every_batch_within_and_its_own_sizes_theirs(engine: Engine, write_network, reference) -> None:
    options = BuildOptions(batches=(1,), tensorrt=TensorRTOptions(ranges=((2, 4, 8),)))
    built = engine.build(write_network(), options)
    for batch in (1, 2, 5, 8, 1):
        inputs = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
        built.bind({"input": inputs})
        built.run()
        np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-3, atol=1e-4)
    with pytest.raises(EngineError, match=r"no profile takes a batch of 9; it was built for 1, 2 to 8 \(best 4\)"):
        built.bind({"input": np.zeros((9, 3, 8, 8), np.float32)})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_census_is_that_of_the_engine(engine: Engine, precision: str, write_network) -> None:
    built = engine.build(write_network(precision=precision), BuildOptions(precision=precision))
    census = built.inspect()["census"]
    assert census["layers"][precision] > 0
    if engine.name == "trt":
        assert census["origin"] == "engine"
        assert sum(census["flops"].values()) == pytest.approx(1)


def test_every_layer_is_timed(engine: Engine, write_network, reference) -> None:
    built = engine.build(write_network(), BuildOptions(batches=(4,)))
    assert isinstance(built, TensorRTRun)
    with pytest.raises(InputError, match="has no inputs bound"):
        built.profile_layers(20)
    inputs = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    built.bind({"input": inputs})
    profile = built.profile_layers(20)
    assert sum(layer.latency_ns for layer in profile.layers) > 0
    if engine.name == "trt":
        assert {"conv", "head"} <= {node for layer in profile.layers for node in layer.nodes}
    built.run()
    np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-3, atol=1e-4)


def test_a_stripped_engine_is_smaller_and_takes_its_weights_from_the_file(
    engine: Engine, write_network, reference, tmp_path: Path
) -> None:
    assert isinstance(engine, TensorRTEngine)
    network, path = write_network(), tmp_path / "net.engine"
    options = BuildOptions(batches=(2,), tensorrt=TensorRTOptions(strip_weights=True))
    engine.build_file(network, path, options)
    assert read_record(path).stripped
    built = engine.load_file(network, path, options)
    inputs = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    built.bind({"input": inputs})
    built.run()
    np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", ["hardware_compatible", "version_compatible"])
def test_a_compatible_engine_runs_here_too(write_network, reference, tmp_path: Path, option: str) -> None:
    engine = engine_named("trt")
    if not engine.availability().runs:
        pytest.skip(f"trt: {engine.availability().reason}")
    assert isinstance(engine, TensorRTEngine)
    network, path = write_network(), tmp_path / "net.engine"
    options = BuildOptions(batches=(2,), tensorrt=TensorRTOptions(**{option: True}))
    engine.build_file(network, path, options)
    assert getattr(read_record(path), option)
    built = engine.load_file(network, path, options)
    inputs = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    built.bind({"input": inputs})
    built.run()
    np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-3, atol=1e-4)


def test_kernel_timings_are_kept_for_the_next_build(
    write_network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_named("trt")
    if not engine.availability().runs:
        pytest.skip(f"trt: {engine.availability().reason}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "prune2deploy" / "timing"
    without = BuildOptions(tensorrt=TensorRTOptions(timing_cache=False))
    engine.build_file(write_network(), tmp_path / "without.engine", without)
    assert not kept.exists()
    engine.build_file(write_network(), tmp_path / "first.engine", BuildOptions())
    (timings,) = kept.iterdir()
    assert timings.stat().st_size > 100
    engine.build_file(write_network(), tmp_path / "second.engine", BuildOptions())
    assert list(kept.iterdir()) == [timings]


def test_a_cached_engine_is_loaded_and_a_damaged_one_rebuilt(engine: Engine, write_network, tmp_path: Path) -> None:
    options = BuildOptions(cache=tmp_path / "cache")
    engine.build(write_network(), options).close()
    (stored,) = (tmp_path / "cache").glob("*.engine")
    first = stored.stat().st_mtime_ns
    engine.build(write_network(), options).close()
    assert stored.stat().st_mtime_ns == first
    stored.write_bytes(b"damaged")
    engine.build(write_network(), options).close()
    assert stored.stat().st_size > 1000


def test_device_time_copies_and_a_queue_leave_the_engine_as_it_was(engine: Engine, write_network, reference) -> None:
    built = engine.build(write_network(), BuildOptions(batches=(4,)))
    assert isinstance(built, TensorRTRun)
    assert isinstance(built, DeviceClock)
    assert isinstance(built, InputCopies)
    assert isinstance(built, Queue)
    inputs = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    built.bind({"input": inputs})
    times = built.time_on_device(50)
    assert len(times) == 50
    assert all(0 <= time < 1e9 for time in times)
    assert sum(times) > 0
    assert len(built.time_copies(5)) == 5
    built.run_queued(2000)
    np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-3, atol=1e-4)
    built.close()
