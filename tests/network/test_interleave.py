"""interleave: several computations in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.interleave import interleave
from convis_widgets.core.runs.run import Run


class Recorder:
    """Makes computations and records which of them were closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    def frames(self, name: str, count: int, error: Exception | None = None) -> Iterator[Frame]:
        """`count` Frames, or an error in place of the last one."""
        try:
            for step in range(1, count + 1):
                if step == count and error is not None:
                    raise error
                yield Frame(step, count, done=step == count)
        finally:
            self.closed.append(name)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_interleave_advances_computations_in_turn(recorder: Recorder) -> None:
    turns = list(interleave({"a": recorder.frames("a", 3), "b": recorder.frames("b", 1), "c": recorder.frames("c", 2)}))
    assert [name for name, _, _ in turns] == ["a", "b", "c", "a", "c", "a"]
    assert [result.step for _, result, _ in turns] == [1, 1, 1, 2, 2, 3]


def test_interleave_progress_sums_steps_and_totals(recorder: Recorder) -> None:
    progress = [made for _, _, made in interleave({"a": recorder.frames("a", 2), "b": recorder.frames("b", 3)})]
    assert [(frame.step, frame.total) for frame in progress] == [(1, 2), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert [frame.done for frame in progress] == [False] * 4 + [True]


def test_interleave_is_not_done_before_all_have_begun(recorder: Recorder) -> None:
    progress = [made.done for _, _, made in interleave({"a": recorder.frames("a", 1), "b": recorder.frames("b", 1)})]
    assert progress == [False, True]


def test_interleave_continues_after_value_error(recorder: Recorder) -> None:
    error = ValueError("not supported")
    turns = list(interleave({"a": recorder.frames("a", 2, error), "b": recorder.frames("b", 2)}))
    assert [(name, result is error) for name, result, _ in turns] == [("a", False), ("b", False), ("a", True), ("b", False)]
    assert turns[-1][2].done


def test_interleave_other_error_closes_all(recorder: Recorder) -> None:
    streams = {"a": recorder.frames("a", 5), "b": recorder.frames("b", 2, RuntimeError("out of memory"))}
    with pytest.raises(RuntimeError, match="memory"):
        list(interleave(streams))
    assert sorted(recorder.closed) == ["a", "b"]


def test_interleave_closed_early_closes_all(recorder: Recorder) -> None:
    turns = interleave({"a": recorder.frames("a", 5), "b": recorder.frames("b", 5)})
    next(turns), next(turns)
    turns.close()
    assert sorted(recorder.closed) == ["a", "b"]


def test_interleave_progress_drives_a_run(recorder: Recorder) -> None:
    streams = {"a": recorder.frames("a", 2), "b": recorder.frames("b", 3)}
    run = Run(progress for _, _, progress in interleave(streams))
    last = run.run()
    assert (last.step, last.total, run.state) == (5, 5, "done")


def test_interleave_without_computations_yields_nothing() -> None:
    assert not list(interleave({}))
