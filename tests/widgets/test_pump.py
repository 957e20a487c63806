"""Pump without a browser, with a simulated clock and acknowledgements."""

from __future__ import annotations

import io

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from convis_widgets.widgets.controls.pump import ACK_TIMEOUT, MAX_IN_FLIGHT, MIN_PERIOD, UNACKNOWLEDGED_PERIOD, Pump


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.image = ipywidgets.Image()
        self.sent: list[str] = []
        self.composed = 0
        self.image.observe(lambda change: self.sent.append(self.image.format), "value")
        self.pump = Pump(self.image, clock=lambda: self.now)

    def offer(self, shade: int) -> None:
        def compose() -> np.ndarray:
            self.composed += 1
            return np.full((8, 8, 3), shade, np.uint8)

        self.pump.offer(compose)

    def acknowledge(self, number: int) -> None:
        self.pump._parts[1].value = number

    def shade(self) -> int:
        return int(np.asarray(Image.open(io.BytesIO(bytes(self.image.value))))[4, 4, 0])


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_offer_sends_and_composes_at_most_once_per_period(bench: Bench) -> None:
    for shade in range(0, 250, 5):
        bench.offer(shade)
    assert bench.composed == len(bench.sent) == 1
    bench.now += MIN_PERIOD * 1.01
    bench.offer(77)
    assert bench.shade() == 77
    assert bench.composed == 2


def test_offer_limits_unacknowledged_images(bench: Bench) -> None:
    for i in range(10):
        bench.now += MIN_PERIOD * 1.01
        bench.offer(10 * i)
    assert len(bench.sent) == MAX_IN_FLIGHT
    bench.offer(200)
    bench.now += MIN_PERIOD * 1.01
    bench.acknowledge(1)
    assert len(bench.sent) == MAX_IN_FLIGHT + 1
    assert bench.shade() == 200, "only the newest image waits"


def test_offer_continues_slowly_without_acknowledgement(bench: Bench) -> None:
    for i in range(MAX_IN_FLIGHT):
        bench.now += MIN_PERIOD * 1.01
        bench.offer(100 + 30 * i)
    bench.now += ACK_TIMEOUT / 2
    bench.offer(2)
    assert len(bench.sent) == MAX_IN_FLIGHT
    bench.now += ACK_TIMEOUT
    bench.offer(3)
    assert len(bench.sent) == MAX_IN_FLIGHT + 1
    bench.now += UNACKNOWLEDGED_PERIOD / 2
    bench.offer(4)
    assert len(bench.sent) == MAX_IN_FLIGHT + 1
    bench.now += UNACKNOWLEDGED_PERIOD
    bench.offer(5)
    assert bench.shade() == 5


def test_flush_sends_last_image(bench: Bench) -> None:
    bench.offer(1)
    bench.offer(99)
    bench.pump.flush()
    assert bench.shade() == 99
    bench.offer(50)
    bench.pump.show(bench.image.value, "png")
    bench.now += 10
    bench.pump.flush()
    assert bench.image.format == "png", "show discards the waiting image"


def test_offer_sends_transparent_image_losslessly(bench: Bench) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    bench.pump.offer(lambda: image)
    assert bench.image.format == "png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bytes(bench.image.value)))), image)
    bench.now += MIN_PERIOD * 1.01
    bench.offer(20)
    assert bench.image.format == "jpeg"
    bench.now += MIN_PERIOD * 1.01
    bench.pump.offer(lambda: image)
    assert bench.sent == ["png", "jpeg", "png"]


def test_close_stops_sending(bench: Bench) -> None:
    bench.offer(1)
    bench.pump.close()
    bench.now += 5
    bench.offer(2)
    bench.pump.flush()
    assert len(bench.sent) == 1
