import numpy as np
import pytest

from prune2deploy.budget.surface import Surface
from prune2deploy.errors import InputError


def test_work_that_is_a_product_of_widths_is_interpolated_without_error():
    inputs, outputs = (16, 64, 256), (8, 512)
    surface = Surface(axes=(inputs, outputs), values=3.0 + np.outer(inputs, outputs))
    assert surface.at(100, 333) == pytest.approx(3 + 100 * 333)
    assert surface.at(300, 600) == pytest.approx(3 + 300 * 600), "beyond the last width the slope goes on"


def test_sizes_are_broadcast():
    surface = Surface(axes=((1, 2), (1, 2)), values=np.array([[1.0, 2.0], [2.0, 4.0]]))
    assert surface.at([[1], [2]], [1, 2]).tolist() == [[1, 2], [2, 4]]


def test_steps_stay_steps_at_the_widths_that_were_measured():
    surface = Surface(axes=((16, 17, 32),), values=np.array([1.0, 2.0, 2.0]))
    assert surface.at([16, 17, 24, 32]).tolist() == [1, 2, 2, 2]


def test_a_latency_is_never_negative():
    assert Surface(axes=((10, 20),), values=np.array([1.0, 10.0])).at(2) == 0


def test_what_has_no_width_is_a_constant_and_a_single_width_is_proportional():
    assert Surface(axes=(), values=np.array(7.0)).at() == 7
    assert Surface(axes=((8,), (4, 8)), values=np.array([[2.0, 4.0]])).at(4, 8) == 2


@pytest.mark.parametrize(
    ("axes", "values"),
    [(((1, 2),), [1.0]), (((2, 1),), [1.0, 2.0]), (((1, 2),), [1.0, np.nan]), (((1, 2),), [1.0, -1.0])],
)
def test_a_damaged_table_is_refused(axes, values):
    with pytest.raises(InputError):
        Surface(axes=axes, values=np.array(values))
