"""The widths that a group may take next."""

from prune2deploy.budget.alignment import allowed_counts
from prune2deploy.graph.channels import Group


def counts_from(group: Group, granule: int, *, left: int) -> tuple[int, ...]:
    """The numbers of channels that a group with ``left`` of its dense channels may keep, ascending, ``left`` last.

    ``group`` is that of the dense graph, whose width decides whether it is aligned.
    """
    return (*(count for count in allowed_counts(group, granule) if count < left), left)
