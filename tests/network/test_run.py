from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core import threads
from convis_widgets.core.knob import Knob, get_knobs
from convis_widgets.core.network.network import Network
from convis_widgets.core.registry import TECHNIQUES, technique
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run, RunStopped, raise_if_stopped
from convis_widgets.core.threads import cpu_count, thread_count
from convis_widgets.techniques.attribution.saliency import saliency
from convis_widgets.techniques.attribution.smooth_grad import smooth_grad

PATIENCE = 10


def count(n: int = 3) -> Iterator[Frame]:
    for i in range(1, n + 1):
        yield Frame(i, n, done=i == n)


def endless(closed_at: list[int] | None = None) -> Iterator[Frame]:
    i = 0
    try:
        while True:
            i += 1
            yield Frame(i)
    finally:
        if closed_at is not None:
            closed_at.append(i)


def record_states(run: Run) -> tuple[list[str], threading.Event]:
    states: list[str] = []
    paused = threading.Event()

    def record(changed: Run) -> None:
        states.append(changed.state)
        if changed.state == "paused":
            paused.set()

    run.subscribe(record)
    return states, paused


def test_run_inline_returns_last_frame() -> None:
    run = Run(count())
    assert run.run().step == 3
    assert (run.state, run.error) == ("done", None)


def test_run_in_thread_finishes() -> None:
    run = Run(count()).start()
    assert run.join(PATIENCE)
    assert run.state == "done"
    assert run.last.done


def test_subscriber_receives_every_frame_until_unsubscribed() -> None:
    run = Run(count(5))
    steps: list[int] = []

    def record(changed: Run) -> None:
        if changed.last is not None and changed.last.step not in steps:
            steps.append(changed.last.step)
            if len(steps) == 3:
                unsubscribe()

    unsubscribe = run.subscribe(record)
    run.run()
    assert steps == [1, 2, 3]


def test_stop_keeps_last_frame_and_closes_generator() -> None:
    closed: list[int] = []
    run = Run(endless(closed))
    enough = threading.Event()
    run.subscribe(lambda r: enough.set() if r.last and r.last.step > 3 else None)
    run.start()
    assert enough.wait(PATIENCE)
    run.stop()
    run.stop()
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    assert run.last.step == closed[0]


def test_run_pause_step_resume() -> None:
    run = Run(endless())
    _, paused = record_states(run)
    run.step()
    assert paused.wait(PATIENCE)
    assert run.last.step == 1
    paused.clear()
    run.step()
    assert paused.wait(PATIENCE)
    assert run.last.step == 2
    run.resume()
    run.pause()
    run.stop()
    assert run.join(PATIENCE)
    assert run.last.step >= 2


def test_run_stop_while_paused() -> None:
    run = Run(endless())
    _, paused = record_states(run)
    run.step()
    assert paused.wait(PATIENCE)
    run.stop()
    assert run.join(PATIENCE)


def test_run_error_is_stored_in_thread_and_raised_inline() -> None:
    def broken() -> Iterator[Frame]:
        yield Frame(1)
        raise ValueError("too bad")

    run = Run(broken()).start()
    assert run.join(PATIENCE)
    assert (run.state, str(run.error), run.last.step) == ("failed", "too bad", 1)
    with pytest.raises(ValueError, match="too bad"):
        Run(broken()).run()


def test_run_keeps_last_frame_on_keyboard_interrupt() -> None:
    def interrupted() -> Iterator[Frame]:
        yield Frame(1)
        raise KeyboardInterrupt

    run = Run(interrupted())
    assert run.run().step == 1
    assert run.state == "stopped"


def test_run_fails_with_error_of_subscriber() -> None:
    def bad(_run: Run) -> None:
        raise RuntimeError("page closed")

    run = Run(count())
    run.subscribe(bad)
    run.start()
    assert run.join(PATIENCE)
    assert str(run.error) == "page closed"


def test_all_subscribers_are_notified_when_one_raises() -> None:
    def bad(_run: Run) -> None:
        raise RuntimeError("page closed")

    run = Run(count())
    run.subscribe(bad)
    states, _ = record_states(run)
    run.start()
    assert run.join(PATIENCE)
    assert states[-1] == "failed"
    idle = Run(count())
    states, _ = record_states(idle)
    idle.stop()
    assert states == ["stopped"]


def test_raise_if_stopped_does_nothing_in_subscriber() -> None:
    run = Run(endless())

    def predict(changed: Run) -> None:
        if changed.last is not None:
            changed.stop()
            raise_if_stopped()

    run.subscribe(predict)
    run.start()
    assert run.join(PATIENCE)
    assert (run.state, run.error) == ("stopped", None)


def test_run_rejects_second_start_while_running() -> None:
    for _ in range(50):
        run = Run(endless()).start()
        assert run.active
        with pytest.raises(RuntimeError, match="running"):
            run.run()
        run.stop()
        assert run.join(PATIENCE)
        assert run.error is None


def test_pause_during_computation_takes_effect_after_frame() -> None:
    computing, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[Frame]:
        yield Frame(1)
        computing.set()
        go_on.wait(PATIENCE)
        yield Frame(2)
        yield Frame(3)

    run = Run(slow())
    _, paused = record_states(run)
    run.step()
    run.step()
    assert computing.wait(PATIENCE)
    paused.clear()
    run.pause()
    go_on.set()
    assert paused.wait(PATIENCE)
    assert run.last.step == 2
    run.stop()
    assert run.join(PATIENCE)


def test_run_stopped_is_not_caught_by_except_exception() -> None:
    def stubborn() -> Iterator[Frame]:
        yield Frame(1)
        run.stop()
        try:
            raise_if_stopped()
        except Exception:  # noqa: BLE001
            yield Frame(2)

    run = Run(stubborn())
    assert run.run().step == 1
    assert run.state == "stopped"


def test_failed_run_releases_memory() -> None:
    class Big:
        pass

    def broken() -> Iterator[Frame]:
        big = Big()
        held.append(weakref.ref(big))
        yield Frame(1)
        raise ValueError("too bad")

    held: list[Any] = []
    run = Run(broken()).start()
    assert run.join(PATIENCE)
    for _ in range(100):  # the thread releases its references after it reports the end
        gc.collect()
        if held[0]() is None:
            break
        threading.Event().wait(0.05)
    assert held[0]() is None
    assert str(run.error) == "too bad"


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Annotated[bool, Knob()], [True, False], [1, None, "yes"]),
        (Annotated[int, Knob(low=0)], [0, np.int64(5)], [-1, 1.5, True]),
        (Annotated[float | None, Knob(high=2)], [None, -7, np.float32(1)], [3, "two", float("nan")]),
        (
            Annotated[tuple[float, ...] | float | str, Knob(0, 1, choices=("all",))],
            ["all", (0, 1), [0.5]],
            ["some", (), (0, 2)],
        ),
    ],
)
def test_knob_check_follows_annotation(hint: Any, good: list[Any], bad: list[Any]) -> None:
    def function(net: Network, *, knob: Any = None) -> None: ...

    function.__annotations__ = {"knob": hint}
    knob = get_knobs(function)["knob"]
    for value in good:
        knob.check("knob", value)
    for value in bad:
        with pytest.raises(ValueError, match="knob="):
            knob.check("knob", value)


def test_frame_stream_attribute_error_explains_how_to_run(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(AttributeError, match=r"Run\(saliency\(.*\.heat"):
        _ = saliency(tiny, image).heat
    with pytest.raises(AttributeError, match="colour"):
        _ = saliency(tiny, image).colour


def test_run_cannot_be_reused() -> None:
    run = Run(count())
    run.run()
    for again in (run.run, run.start):
        with pytest.raises(RuntimeError, match="done"):
            again()
    idle = Run(count())
    idle.stop()
    assert idle.state == "stopped"
    assert idle.join(0)


@technique
def gain_technique(
    net: Network, *, gain: Annotated[float, Knob(0, 10, live=True)] = 1.0, size: Annotated[int, Knob(1, 9)] = 1
) -> Any:
    """Yield frames that hold the current gain."""
    while True:
        sent = yield Frame(1, scalars={"gain": gain * size})
        gain = (sent or {}).get("gain", gain)


def test_frame_stream_send_applies_at_next_step(tiny: Network) -> None:
    frames = gain_technique(tiny)
    assert next(frames).scalars["gain"] == 1
    assert frames.send({"gain": 5.0}).scalars["gain"] == 5
    assert next(frames).scalars["gain"] == 5


def test_frame_stream_send_before_first_frame_applies_to_second(tiny: Network) -> None:
    frames = gain_technique(tiny)
    assert frames.send({"gain": 4.0}).scalars["gain"] == 1
    assert next(frames).scalars["gain"] == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [({"gian": 1}, "gian.*gain"), ({"size": 2}, "size.*gain"), ({"gain": 11}, r"gain.*\b11\b.*\b10\b")],
)
def test_frame_stream_send_rejects_invalid_value_and_continues(tiny: Network, values: dict[str, Any], message: str) -> None:
    frames = gain_technique(tiny)
    next(frames)
    with pytest.raises(ValueError, match=message):
        Run(frames).send(**values)
    with pytest.raises(ValueError, match=message):
        frames.send(values)
    assert next(frames).scalars["gain"] == 1


def test_technique_checks_knobs_when_called(tiny: Network) -> None:
    with pytest.raises(ValueError, match=r"gain=11\b.*\b10\b"):
        gain_technique(tiny, gain=11)
    with pytest.raises(TypeError, match="'gan'.*gain"):
        gain_technique(tiny, gan=1)


def test_run_stops_forward_pass_between_layers() -> None:
    reached = threading.Event()
    go_on = threading.Event()

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            reached.set()
            go_on.wait(PATIENCE)
            return x

    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("this layer must not be reached")

    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = Network(module, size=8)
    net.module[0].forward = lambda x: Slow()(x)
    net.module[1].forward = lambda x: Never()(x)

    def work() -> Iterator[Frame]:
        yield Frame(1)
        net(torch.rand(1, 3, 8, 8))
        yield Frame(2)

    run = Run(work()).start()
    assert reached.wait(PATIENCE)
    run.stop()
    go_on.set()
    assert run.join(PATIENCE)
    assert (run.state, run.error, run.last.step) == ("stopped", None, 1)


def test_raise_if_stopped_does_nothing_outside_run() -> None:
    raise_if_stopped()
    run = Run(iter(()))
    run.stop()
    assert not issubclass(RunStopped, Exception), "`except Exception` in a model would catch it"


# -- threads -----------------------------------------------------------------------------------------------------------


def test_import_keeps_thread_count_and_first_run_limits_it() -> None:
    code = """
import torch
cores, many = %d, %d
torch.set_num_threads(many)
import convis_widgets.core
import convis_widgets.techniques
from convis_widgets import Frame, Run
assert torch.get_num_threads() == many, "importing changed the number of threads"

def frames():
    counts.append(torch.get_num_threads())
    yield Frame(1, done=True)

counts = []
assert Run(frames()).start().join(20)
Run(frames()).run()
assert counts == [cores, cores], counts
assert torch.get_num_threads() == cores
torch.set_num_threads(many)
Run(frames()).run()
assert torch.get_num_threads() == many, "the user's choice was overridden"
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code % (cpu_count(), cpu_count() + 3)], check=True, env=environment)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 10),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 10),
        ({"cpu.max": "5000 100000"}, 1),
        ({}, 10),
    ],
)
def test_cpu_count_is_capped_by_cgroup_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(10)), raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_count(tmp_path) == expected


@pytest.mark.parametrize(("of_torch", "cores", "expected"), [(1, 8, 1), (64, 2, 2), (3, 3, 3)])
def test_thread_count_is_that_of_torch_and_at_most_the_number_of_cores(
    of_torch: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: of_torch)
    monkeypatch.setattr(threads, "cpu_count", lambda: cores)
    assert thread_count() == expected


# -- stopping a step that takes long, and using a Run or its Frames again ------------------------------------------------


def test_run_is_stopping_until_the_step_in_progress_ends() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def frames() -> Iterator[Frame]:
        inside.set()
        go_on.wait(PATIENCE)
        yield Frame(1)

    run = Run(frames()).start()
    assert inside.wait(PATIENCE)
    assert not run.stopping
    run.stop()
    assert run.stopping
    with pytest.raises(RuntimeError, match="being stopped.*new one"):
        run.start()
    go_on.set()
    assert run.join(PATIENCE)
    assert not run.stopping


def test_call_if_late_calls_only_for_a_run_that_has_not_finished() -> None:
    go_on, called = threading.Event(), threading.Event()

    def frames() -> Iterator[Frame]:
        go_on.wait(PATIENCE)
        yield Frame(1, 1, done=True)

    late: list[Run] = []
    run = Run(frames()).start()
    run.call_if_late(0.01, lambda changed: (late.append(changed), called.set()))
    assert called.wait(PATIENCE)
    assert late == [run]
    go_on.set()
    assert run.join(PATIENCE)
    run.call_if_late(60, late.append)
    for thread in [thread for thread in threading.enumerate() if thread.name == "convis-late"]:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it ends with the Run"
    assert late == [run]


def test_interpreter_exits_while_forward_passes_never_return() -> None:
    """With one deadline for all Runs together: 60 times two seconds would exceed the limit."""
    code = (
        "import threading; from convis_widgets.core.runs.run import Run\n"
        "def frames(): threading.Event().wait(); yield\n"
        "runs = [Run(frames()).start() for _ in range(60)]\n"
        "for run in runs: run.stop(); run.call_if_late(1e6, print)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def paused_run() -> Run:
    run = Run(endless())
    _, paused = record_states(run)
    run.step()
    assert paused.wait(PATIENCE)
    return run


def finished_run() -> Run:
    run = Run(saliency("demo", np.zeros((64, 64, 3), np.float32), target=0))
    run.run()
    return run


def stopped_run() -> Run:
    run = Run(count())
    run.stop()
    return run


@pytest.mark.parametrize(
    ("make", "pattern"),
    [(paused_run, "paused.*resume"), (finished_run, "done.*last.*new one"), (stopped_run, "stopped.*new one")],
)
def test_run_that_was_used_says_how_to_go_on(make: Any, pattern: str) -> None:
    run = make()
    with pytest.raises(RuntimeError, match=pattern):
        run.run()
    run.stop()
    assert run.join(PATIENCE)


def test_value_sent_to_a_finished_run_is_refused(tiny: Network) -> None:
    @technique
    def two_steps(net: Network, *, gain: Annotated[float, Knob(0, 9, live=True)] = 1.0) -> Iterator[Frame]:
        yield Frame(1)
        yield Frame(2, done=True)

    TECHNIQUES.pop("two_steps")
    run = Run(two_steps(tiny))
    run.send(gain=2.0)
    run.run()
    with pytest.raises(ValueError, match="gain=-1"):
        run.send(gain=-1)
    with pytest.raises(RuntimeError, match="gain.*done"):
        run.send(gain=2.0)
    stopped = Run(two_steps(tiny))
    stopped.stop()
    with pytest.raises(RuntimeError, match="gain.*stopped"):
        stopped.send(gain=2.0)


def test_frames_that_were_used_are_refused(tiny: Network, image: np.ndarray) -> None:
    stream, generator = saliency(tiny, image), count()
    waiting = Run(stream)
    assert len([*stream]) == len([*generator]) - 2 == 1
    for used in (stream, generator):
        with pytest.raises(RuntimeError, match="ended already.*again"):
            Run(used)
    for start in (waiting.start, waiting.run, waiting.step):
        with pytest.raises(RuntimeError, match="saliency.*ended already"):
            start()


def test_partly_used_frames_are_continued(tiny: Network, image: np.ndarray) -> None:
    generator = count()
    assert next(generator).step == 1
    assert Run(generator).run().step == 3


def test_iterator_of_something_else_fails_with_its_type() -> None:
    with pytest.raises(TypeError, match="int instead of a Frame"):
        Run(iter([1, 2])).run()


def test_signature_of_a_technique_has_plain_annotations() -> None:
    text = str(inspect.signature(smooth_grad))
    assert text.startswith("(net: NetworkLike, image: ImageLike, *, target: int | str | None = None, ")
    assert "samples: int = 32" in text
    assert "reduction: str = " in text
    assert text.endswith(" -> FrameStream")
    for name, function in TECHNIQUES.items():
        assert "Annotated" not in str(inspect.signature(function)), name
        assert "Knob" not in str(inspect.signature(function)), name
    assert get_knobs(smooth_grad)["samples"] == Knob(1, 512, types=(int,))


def test_signature_of_a_technique_without_postponed_annotations() -> None:
    def brightness(net, image, *, gain=1.0):  # type: ignore[no-untyped-def]
        yield Frame(1, 1, done=True)

    brightness.__annotations__ = {"gain": Annotated[float, Knob(0, 9)]}
    made = technique(brightness)
    TECHNIQUES.pop("brightness")
    assert str(inspect.signature(made)) == "(net: NetworkLike, image, *, gain: float = 1.0) -> FrameStream"
