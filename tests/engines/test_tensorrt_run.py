"""TensorRT on a GPU. These tests run where there is one: pytest -m gpu."""

from pathlib import Path

import numpy as np
import pytest

from prune2deploy.engines.cuda import CudaDevice, find_device
from prune2deploy.engines.engine import BuildOptions, Engine
from prune2deploy.engines.parity import check_parity
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError, InputError
from prune2deploy.evaluation import EvaluationSet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not isinstance(find_device(), CudaDevice), reason="needs an NVIDIA GPU"),
]


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
