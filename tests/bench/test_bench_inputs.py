"""Which shapes a network is measured at, and what it is fed."""

import numpy as np
import pytest

from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.subjects import BenchRequest, Subject
from prune2deploy.bench.timed.inputs import batch_of, fixed_batch, input_buffers, shapes_at, spelled_input
from prune2deploy.engines.engine import TensorInfo
from prune2deploy.errors import InputError


def info(name: str, *shape: int | None, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


IMAGE = info("image", None, 3, 8, 8)
TOKENS = info("tokens", None, None, dtype="int64")
MASK = info("mask", None, None, dtype="bool")
TABLE = info("table", 5, 4)


def test_a_free_first_size_is_the_batch():
    assert shapes_at([IMAGE], batch=7, where="a.onnx") == {"image": (7, 3, 8, 8)}


def test_given_shapes_are_taken_whole_and_the_rest_gets_the_batch():
    shapes = {"tokens": (2, 128)}
    assert shapes_at([IMAGE, TOKENS], batch=2, where="a.onnx", shapes=shapes) == {
        "image": (2, 3, 8, 8),
        "tokens": (2, 128),
    }


def test_a_fixed_first_size_beside_a_free_one_is_no_batch():
    assert shapes_at([IMAGE, TABLE], batch=3, where="a.onnx") == {"image": (3, 3, 8, 8), "table": (5, 4)}
    assert fixed_batch([IMAGE, TABLE]) is None
    assert fixed_batch([TABLE]) == 5
    assert fixed_batch([info("scale")]) is None
    assert shapes_at([info("scale")], batch=3, where="a.onnx") == {"scale": ()}


def test_the_batch_of_given_shapes_is_the_free_first_size():
    assert batch_of([TABLE, TOKENS], {"tokens": (2, 16), "table": (5, 4)}) == 2
    assert batch_of([TABLE], {"table": (5, 4)}) == 5


def test_an_input_is_spelled_as_the_option_takes_it():
    assert spelled_input(TOKENS) == "tokens=?x?"


@pytest.mark.parametrize(
    ("infos", "shapes", "message"),
    [
        ([TABLE], {}, "a.onnx: input table is fixed to batch size 5, not 1; use --batch 5"),
        ([TOKENS], {}, r"a.onnx: input tokens has a free size besides the batch: \?x\?; pass --shape tokens=\?x\?"),
        ([IMAGE], {"picture": (1, 3, 8, 8)}, r"a.onnx: has no input 'picture'; its inputs are image=\?x3x8x8"),
        ([IMAGE], {"image": (1, 4, 8, 8)}, r"a.onnx: input image is \?x3x8x8, not 1x4x8x8; pass --shape image="),
        ([IMAGE], {"image": (1, 3, 8)}, r"a.onnx: input image is \?x3x8x8, not 1x3x8"),
        ([TOKENS, MASK], {"tokens": (1, 16)}, r"input mask has a free size besides the batch"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_those_that_do(infos, shapes, message):
    with pytest.raises(InputError, match=message):
        shapes_at(infos, batch=1, where="a.onnx", shapes=shapes)


def test_buffers_have_the_given_shapes_and_no_zeros():
    buffers = input_buffers(
        [TOKENS, MASK], batch=2, seed=0, real_inputs=None, where="a.onnx", shapes={"tokens": (2, 16), "mask": (2, 16)}
    )
    assert len(buffers) == 4
    for arrays in buffers:
        assert (arrays["tokens"].shape, arrays["tokens"].dtype) == ((2, 16), np.int64)
        assert (arrays["tokens"] > 0).all()
        assert (arrays["mask"].shape, arrays["mask"].dtype) == ((2, 16), np.bool_)


def test_shapes_travel_to_the_measuring_process(tmp_path):
    subject = Subject(variant="a", precision="fp32", onnx_path=tmp_path / "a.onnx", sha256="00")
    request = BenchRequest(subjects=(subject,), engine="ort-cpu", batches=(2,), shapes={"tokens": (2, 16)})
    job = BuildJob(request=request, build=0, cpus=None, budget_seconds=None)
    assert BuildJob.from_document(job.to_document()).request == request


def test_a_shape_has_one_batch(tmp_path):
    subject = Subject(variant="a", precision="fp32", onnx_path=tmp_path / "a.onnx", sha256="00")
    with pytest.raises(InputError, match="--shape: a shape has one batch size"):
        BenchRequest(subjects=(subject,), engine="ort-cpu", batches=(1, 2), shapes={"tokens": (2, 16)})
