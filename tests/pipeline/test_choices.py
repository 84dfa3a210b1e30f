"""The light lists that the command line reads name exactly what the stages have registered."""

import pytest

from prune2deploy.engines.registry import AUTO, all_engines
from prune2deploy.errors import InputError
from prune2deploy.graph.labels import AttentionAxis
from prune2deploy.importance.criteria import CRITERIA
from prune2deploy.pipeline import choices
from prune2deploy.pipeline.requests import Targets


def test_every_registered_engine_can_be_named():
    assert set(choices.ENGINES) == {AUTO, *(engine.name for engine in all_engines())}


def test_every_registered_criterion_can_be_named():
    assert set(choices.PRUNING_METHODS) == set(CRITERIA)


def test_what_may_leave_attentions_is_what_the_graph_knows() -> None:
    assert list(choices.ATTENTION) == list(AttentionAxis)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"--scope al: is not available .*; did you mean all\? choose all or "):
        choices.known("al", choices.SCOPES, where="--scope")


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_targets_check_themselves(share):
    with pytest.raises(InputError, match="--params"):
        Targets(parameters=share)
    with pytest.raises(InputError, match="--flops"):
        Targets(flops=share, parameters=0.5)
