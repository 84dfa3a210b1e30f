import math

import pytest

from prune2deploy.budget.target import Budget
from prune2deploy.errors import InputError


@pytest.mark.parametrize("fraction", [0, 1, 2, -1, math.nan, math.inf, 0.0, 1.0])
@pytest.mark.parametrize(("name", "option"), [("flops", "--flops"), ("parameters", "--params")])
def test_a_fraction_outside_0_to_1_is_refused_by_its_option(name: str, option: str, fraction: float) -> None:
    with pytest.raises(InputError, match=f"^{option}: .* is not a fraction between 0 and 1"):
        Budget(**{name: fraction})


def test_no_target_at_all_is_refused_with_an_example() -> None:
    with pytest.raises(InputError, match=r"no target is given; .*--flops 0\.33"):
        Budget()


def test_only_the_fractions_that_are_given_count() -> None:
    assert Budget(parameters=0.5).fractions == {"parameters": 0.5}
    assert Budget(flops=0.3, parameters=0.5).fractions == {"flops": 0.3, "parameters": 0.5}
