"""The order of rounds: a property of the seed, and fair."""

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.bench.machine.affinity import choose_cpus
from prune2deploy.bench.timed.schedule import Slot, build_order, round_orders, slots_for

seeds = st.integers(min_value=0, max_value=2**32 - 1)
small = st.integers(min_value=0, max_value=50)


@given(slots=st.integers(min_value=1, max_value=9), seed=seeds, build=small, cell=small)
def test_every_round_runs_every_slot_once(slots: int, seed: int, build: int, cell: int) -> None:
    for order in islice(round_orders(slots, seed=seed, build=build, cell=cell), 5):
        assert sorted(order) == list(range(slots))
    assert sorted(build_order(slots, seed=seed, build=build)) == list(range(slots))


@given(seed=seeds, build=small, cell=small)
def test_orders_repeat_with_their_seed_and_differ_between_builds(seed: int, build: int, cell: int) -> None:
    def orders(build_number: int) -> list[tuple[int, ...]]:
        return list(islice(round_orders(5, seed=seed, build=build_number, cell=cell), 20))

    assert orders(build) == orders(build)
    assert orders(build) != orders(build + 1)


def test_each_slot_takes_each_position_about_equally_often() -> None:
    orders = list(islice(round_orders(4, seed=1, build=0, cell=0), 4000))
    for position in range(4):
        counts = Counter(order[position] for order in orders)
        assert all(abs(count - 1000) < 130 for count in counts.values())


def test_the_baseline_is_there_twice() -> None:
    assert slots_for(("dense", "pruned"), baseline="dense") == (
        Slot(variant="dense"),
        Slot(variant="pruned"),
        Slot(variant="dense", copy=1),
    )


def test_cpus_are_the_quietest_on_distinct_cores() -> None:
    core_of = {0: "a", 1: "a", 2: "b", 3: "b"}
    busy = {0: 5.0, 1: 1.0, 2: 90.0, 3: 80.0}
    assert choose_cpus((0, 1, 2, 3), threads=1, core_of=core_of, busy=busy) == (1,)
    assert choose_cpus((0, 1, 2, 3), threads=2, core_of=core_of, busy=busy) == (1, 3)
    assert choose_cpus((0, 1, 2, 3), threads=3, core_of=core_of, busy=busy) == (0, 1, 3)


@given(count=st.integers(min_value=1, max_value=12), threads=st.integers(min_value=1, max_value=12), seed=seeds)
def test_as_many_distinct_cpus_as_threads_are_chosen(count: int, threads: int, seed: int) -> None:
    core_of = {cpu: str((cpu * seed) % 3) for cpu in range(count)}
    busy = {cpu: float((cpu * 37 + seed) % 100) for cpu in range(count)}
    chosen = choose_cpus(range(count), threads=threads, core_of=core_of, busy=busy)
    assert len(set(chosen)) == min(threads, count)
