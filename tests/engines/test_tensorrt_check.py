"""NVIDIA's own parser over ONNX files, which needs no GPU."""

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from prune2deploy.engines.tensorrt import check as tensorrt_check
from prune2deploy.engines.tensorrt.check import check_parses
from prune2deploy.errors import EngineError, InputError

pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_that_tensorrt_takes_passes(write_network, precision: str) -> None:
    check_parses(write_network(precision=precision))


def test_an_operator_that_the_parser_lacks_is_named_with_its_node(write_nodes) -> None:
    path = write_nodes([helper.make_node("Foo", ["input"], ["output"], name="my_foo", domain="custom")])
    with pytest.raises(EngineError, match=r"operator Foo \(node 'my_foo'\)") as caught:
        check_parses(path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)


def test_one_good_file_after_a_bad_one_passes(write_nodes, write_network) -> None:
    bad = write_nodes([helper.make_node("BitShift", ["input", "input"], ["output"], name="shift", direction="LEFT")])
    with pytest.raises(EngineError, match="BitShift"):
        check_parses(bad)
    check_parses(write_network())


def test_a_broken_graph_is_bad_input(write_nodes, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_nodes([helper.make_node("Relu", ["nowhere"], ["output"], name="r")])
    with pytest.raises((InputError, EngineError), match=r"nodes\.onnx"):
        check_parses(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_what_is_no_onnx_file_is_refused_before_the_parser(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"net\.onnx"):
        check_parses(path)


def test_without_a_parser_it_says_how_to_get_one(write_network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_check, "_PARSERS", {"no_such_rtx": "trt-rtx", "no_such_tensorrt": "trt"})
    with pytest.raises(EngineError, match=r"pip install 'prune2deploy\[trt-rtx\]'"):
        check_parses(write_network())


def test_types_that_do_not_fit_are_named(write_nodes) -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], name="to_half", to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "input"], ["output"], name="mixed_sum"),
    ]
    with pytest.raises((InputError, EngineError), match="mixed_sum"):
        check_parses(write_nodes(nodes))
