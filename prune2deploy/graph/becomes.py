"""What stands in the place of a module whose residual branch left."""

import enum


class Becomes(enum.StrEnum):
    """What a module of a removed branch gives instead.

    ``ZEROS``: new zeros of the shape of its input. ``INPUT``: its input, unchanged.
    """

    ZEROS = "zeros"
    INPUT = "input"
