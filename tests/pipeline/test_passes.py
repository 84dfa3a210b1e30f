"""Which passes an export asks for."""

from pathlib import Path

import pytest

from prune2deploy.errors import InputError
from prune2deploy.export.passes.graph import GraphPasses
from prune2deploy.pipeline.passes import passes_for
from prune2deploy.pipeline.requests import ExportRequest

KNOWN = ((0.5,), (0.25,))
RUN = Path("p2d-runs/one")


def test_every_option_of_the_graph_becomes_a_pass() -> None:
    request = ExportRequest(softmax=True, top_k=3, input_format="uint8-nhwc", source_size=(48, 64), batch=8)
    wanted = GraphPasses(
        normalize=KNOWN, softmax=True, top_k=3, input_format="uint8-nhwc", source_size=(48, 64), batch=8
    )
    assert passes_for(request, KNOWN, RUN) == wanted


def test_a_plain_export_has_none_whatever_the_run_knows() -> None:
    assert passes_for(ExportRequest(), KNOWN, RUN) == GraphPasses()


@pytest.mark.parametrize(
    ("request_", "option"),
    [(ExportRequest(normalize=True), "--normalize"), (ExportRequest(input_format="uint8-nhwc"), "--input uint8-nhwc")],
    ids=["normalize", "bytes"],
)
def test_constants_that_nobody_knows_are_asked_for_with_the_data(request_: ExportRequest, option: str) -> None:
    with pytest.raises(InputError, match=rf"{option}, p2d-runs/one: .*; prune with --data"):
        passes_for(request_, None, RUN)
