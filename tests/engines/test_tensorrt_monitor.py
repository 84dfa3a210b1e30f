"""The builder's phases as one bar."""

from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.engines.tensorrt.monitor import BuildWatch


class RecordingTask:
    def __init__(self) -> None:
        self.done = 0.0
        self.texts: list[str] = []

    def advance(self, steps: float = 1) -> None:
        assert steps > 0
        self.done += steps

    def describe(self, text: str) -> None:
        self.texts.append(text)


def test_inner_phases_fill_the_step_that_they_belong_to() -> None:
    task = RecordingTask()
    watch = BuildWatch(task)
    watch.phase_start("Building engine", None, 4)
    watch.phase_start("Timing kernels", "Building engine", 2)
    assert watch.step_complete("Timing kernels", 0)
    assert task.done == 1 / 8
    watch.step_complete("Timing kernels", 1)
    watch.phase_finish("Timing kernels")
    watch.step_complete("Building engine", 0)
    assert task.done == 1 / 4
    watch.phase_finish("Building engine")
    assert task.done == 1
    assert task.texts == ["Building engine", "Timing kernels"]


def test_a_stopped_build_ends_at_its_next_step() -> None:
    watch = BuildWatch(RecordingTask())
    watch.phase_start("Building engine", None, 4)
    assert watch.step_complete("Building engine", 0)
    watch.stop()
    assert not watch.step_complete("Building engine", 1)


def test_a_failing_bar_ends_the_build_and_is_kept() -> None:
    class BrokenTask(RecordingTask):
        def advance(self, steps: float = 1) -> None:
            raise BrokenPipeError

    watch = BuildWatch(BrokenTask())
    watch.phase_start("Building engine", None, 4)
    assert not watch.step_complete("Building engine", 0)
    assert isinstance(watch.failure, BrokenPipeError)


NAMES = st.sampled_from(["a", "b", "c"])
EVENTS = st.one_of(
    st.tuples(st.just("start"), NAMES, st.one_of(st.none(), NAMES), st.integers(-1, 5)),
    st.tuples(st.just("step"), NAMES, st.integers(0, 6)),
    st.tuples(st.just("finish"), NAMES),
)


@given(st.lists(EVENTS, max_size=30))
def test_whatever_the_builder_tells_the_share_never_falls_nor_exceeds_the_whole(events: list[tuple]) -> None:
    task = RecordingTask()
    watch = BuildWatch(task)
    calls = {"start": watch.phase_start, "step": watch.step_complete, "finish": watch.phase_finish}
    for kind, *arguments in events:
        calls[kind](*arguments)
        assert watch.failure is None
        assert 0 <= task.done <= 1 + 1e-9
