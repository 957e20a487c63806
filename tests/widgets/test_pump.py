"""Pump without a browser, with a simulated clock and acknowledgements."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from convis_widgets.widgets.controls.pump import (
    ACK_TIMEOUT,
    MAX_IN_FLIGHT,
    MAX_IN_FLIGHT_OF_ALL,
    MIN_PERIOD,
    UNACKNOWLEDGED_PERIOD,
    UNSEEN_PERIOD,
    Pump,
    Turns,
)


class Clock:
    now = 100.0


class Bench:
    """A pump, and what it has sent."""

    def __init__(self, clock: Clock | None = None, turns: Turns | None = None) -> None:
        self.clock = clock or Clock()
        self.sent: list[bytes] = []
        self.composed = 0
        self.pump = Pump(lambda data, serial: self.send(data, serial), lambda: self.clock.now, turns or Turns())

    def send(self, data: bytes, serial: int) -> None:
        self.sent.append(data)
        assert serial == len(self.sent)

    def offer(self, shade: int) -> None:
        def compose() -> np.ndarray:
            self.composed += 1
            return np.full((8, 8, 3), shade, np.uint8)

        self.pump.offer(compose)

    def wait(self, seconds: float = MIN_PERIOD * 1.01) -> None:
        self.clock.now += seconds

    def last(self) -> Image.Image:
        return Image.open(io.BytesIO(self.sent[-1]))

    def shade(self) -> int:
        return int(np.asarray(self.last())[4, 4, 0])


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_offer_sends_and_composes_at_most_once_per_period(bench: Bench) -> None:
    for shade in range(0, 250, 5):
        bench.offer(shade)
    assert bench.composed == len(bench.sent) == 1
    bench.wait()
    bench.offer(77)
    assert bench.shade() == 77
    assert bench.composed == 2


def test_offer_limits_unacknowledged_images(bench: Bench) -> None:
    for i in range(10):
        bench.wait()
        bench.offer(10 * i)
    assert len(bench.sent) == MAX_IN_FLIGHT
    bench.offer(200)
    bench.wait()
    bench.pump.acknowledge(1)
    assert len(bench.sent) == MAX_IN_FLIGHT + 1
    assert bench.shade() == 200, "only the newest image waits"


def test_offer_continues_slowly_without_acknowledgement(bench: Bench) -> None:
    for i in range(MAX_IN_FLIGHT):
        bench.wait()
        bench.offer(100 + 30 * i)
    bench.wait(ACK_TIMEOUT / 2)
    bench.offer(2)
    assert len(bench.sent) == MAX_IN_FLIGHT
    bench.wait(ACK_TIMEOUT)
    bench.offer(3)
    assert len(bench.sent) == MAX_IN_FLIGHT + 1
    bench.wait(UNACKNOWLEDGED_PERIOD / 2)
    bench.offer(4)
    assert len(bench.sent) == MAX_IN_FLIGHT + 1
    bench.wait(UNACKNOWLEDGED_PERIOD)
    bench.offer(5)
    assert bench.shade() == 5
    assert 1 / UNACKNOWLEDGED_PERIOD >= 15, "while a cell keeps the main thread busy"


def test_view_that_nobody_sees_gets_few_images_until_it_is_seen(bench: Bench) -> None:
    bench.offer(1)
    bench.pump.set_seen(False)
    for _ in range(10):
        bench.wait(UNSEEN_PERIOD / 20)
        bench.offer(2)
    assert len(bench.sent) == 1
    bench.wait(UNSEEN_PERIOD)
    bench.offer(3)
    assert bench.shade() == 3
    bench.pump.acknowledge(2)  # it is seen, in this page or another
    bench.wait()
    bench.offer(4)
    assert bench.shade() == 4


def test_flush_sends_last_image(bench: Bench) -> None:
    bench.offer(1)
    bench.offer(99)
    bench.pump.flush()
    assert bench.shade() == 99
    bench.offer(50)
    bench.pump.show(bench.sent[0])
    bench.wait(10)
    bench.pump.flush()
    assert bench.sent[-1] == bench.sent[0], "show discards the waiting image"


def test_offer_sends_transparent_image_losslessly(bench: Bench) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    bench.pump.offer(lambda: image)
    assert bench.last().format == "PNG"
    assert np.array_equal(np.asarray(bench.last()), image)
    bench.wait()
    bench.offer(20)
    assert bench.last().format == "JPEG"


def test_close_stops_sending(bench: Bench) -> None:
    bench.offer(1)
    bench.pump.close()
    bench.wait(5)
    bench.offer(2)
    bench.pump.flush()
    assert len(bench.sent) == 1


# -- several pumps -----------------------------------------------------------------------------------------------------


@pytest.fixture
def benches() -> list[Bench]:
    clock, turns = Clock(), Turns()
    return [Bench(clock, turns) for _ in range(12)]


def offer_all(benches: list[Bench], shade: int) -> None:
    for bench in benches:
        bench.offer(shade)


def total(benches: list[Bench]) -> int:
    return sum(len(bench.sent) for bench in benches)


def test_pumps_share_a_limit_and_take_turns(benches: list[Bench]) -> None:
    for shade in (1, 2, 3):
        offer_all(benches, shade)
        benches[0].wait()
    assert total(benches) == MAX_IN_FLIGHT_OF_ALL
    # every acknowledgement lets one more image through, that of the pump that waits longest
    for i in range(len(benches) - MAX_IN_FLIGHT_OF_ALL):
        assert total(benches) == MAX_IN_FLIGHT_OF_ALL + i
        next(bench for bench in benches if bench.pump.in_flight).pump.acknowledge(1)
    assert all(bench.sent for bench in benches)
    assert all(bench.shade() == 3 for bench in benches[MAX_IN_FLIGHT_OF_ALL:]), "the newest images"


def test_pump_that_is_not_acknowledged_does_not_hold_up_others(benches: list[Bench]) -> None:
    offer_all(benches[:MAX_IN_FLIGHT_OF_ALL], 1)
    benches[-1].offer(1)
    assert not benches[-1].sent
    benches[-1].wait(ACK_TIMEOUT * 1.1)  # nobody displays the others
    benches[-1].offer(2)
    assert benches[-1].shade() == 2


@pytest.mark.parametrize("end", [lambda pump: pump.close(), lambda pump: pump.set_seen(False)])
def test_pump_that_ends_gives_its_turn_to_others(benches: list[Bench], end: Callable[[Pump], None]) -> None:
    offer_all(benches[:MAX_IN_FLIGHT_OF_ALL], 1)
    benches[-1].offer(1)
    assert not benches[-1].sent
    end(benches[0].pump)
    assert benches[-1].sent


def test_last_image_of_a_pump_that_waits_is_sent_in_the_end(benches: list[Bench]) -> None:
    offer_all(benches, 5)
    for bench in benches:
        bench.pump.flush()
    assert all(bench.shade() == 5 for bench in benches)
