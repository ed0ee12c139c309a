import io

import pytest

from regseg_jax.reports.progress import ProgressBar


class Clock:
    """A clock that stands still except for `advance`."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_steps(bar, clock, steps):
    """A first step that compiles, then steps of 2 s, of which 0.5 s waiting for input."""
    for step in steps:
        with bar.waiting():
            clock.advance(0.5)
        clock.advance(60 if step == steps[0] else 1.5)
        bar.update(step, loss=1 / step, learning_rate=0.05)


def test_rates_of_a_resumed_run_leave_out_the_first_step():
    clock = Clock()
    bar = ProgressBar(1000, 8, start_step=900, stream=io.StringIO(), clock=clock)
    assert bar.take_rates() == {}
    run_steps(bar, clock, range(901, 902))
    assert bar.take_rates() == {}
    bar = ProgressBar(1000, 8, start_step=900, stream=io.StringIO(), clock=clock)
    run_steps(bar, clock, range(901, 912))
    rates = bar.take_rates()
    assert rates["images_per_second"] == pytest.approx(4)
    assert rates["input_wait_share"] == pytest.approx(0.25)
    assert rates["seconds_left"] == pytest.approx(89 * 2)


def test_pauses_count_in_the_time_left_only():
    clock = Clock()
    bar = ProgressBar(20, 8, stream=io.StringIO(), clock=clock)
    run_steps(bar, clock, range(1, 12))
    with bar.paused():
        clock.advance(20)
    rates = bar.take_rates()
    assert rates["images_per_second"] == pytest.approx(4)
    assert rates["input_wait_share"] == pytest.approx(0.25)
    assert rates["seconds_left"] == pytest.approx(9 * (10 * 2 + 20) / 10)


def test_rates_of_a_record_are_of_the_steps_since_the_last():
    clock = Clock()
    bar = ProgressBar(101, 8, stream=io.StringIO(), clock=clock)
    run_steps(bar, clock, range(1, 12))
    bar.take_rates()
    with bar.paused():
        clock.advance(20)
    for step in range(12, 22):  # twice as slow as before, and never waiting
        clock.advance(4)
        bar.update(step)
    rates = bar.take_rates()
    assert rates["images_per_second"] == pytest.approx(2)
    assert rates["input_wait_share"] == 0
    assert rates["seconds_left"] == pytest.approx(80 * (10 * 2 + 20 + 10 * 4) / 20)
    assert bar.take_rates() == {}


def test_plain_lines_come_every_few_seconds_and_at_the_ends():
    clock, stream = Clock(), io.StringIO()
    with ProgressBar(12, 8, stream=stream, clock=clock, interval_seconds=10) as bar:
        run_steps(bar, clock, range(1, 13))
        bar.write("done")
    assert stream.getvalue().splitlines() == [
        "step 1/12, loss 1, learning rate 0.05",
        "step 6/12, loss 0.1667, learning rate 0.05, 4.0 images/s, 25% waiting for input, "
        "00:12 left",
        "step 11/12, loss 0.09091, learning rate 0.05, 4.0 images/s, 25% waiting for input, "
        "00:02 left",
        "done",
        "step 12/12, loss 0.08333, learning rate 0.05, 4.0 images/s, 25% waiting for input, "
        "00:00 left",
    ]


def test_terminal_gets_a_bar():
    clock, stream = Clock(), Terminal()
    with ProgressBar(100, 8, start_step=50, stream=stream, clock=clock) as bar:
        run_steps(bar, clock, range(51, 53))
        bar.write("a message")
    text = stream.getvalue()
    last = text.split("\r")[-1].rstrip("\n")
    assert "50/100" in text.split("\r")[1]  # before the first step
    assert "52%|" in last
    assert "52/100, loss 0.01923" in last
    assert last.endswith("4.0 images/s, 25% waiting for input, 01:36 left")
    assert "a message\n" in text


def test_disabled_bar_shows_nothing():
    clock = Clock()
    for stream in (io.StringIO(), Terminal()):
        with ProgressBar(12, 8, stream=stream, enabled=False, clock=clock) as bar:
            run_steps(bar, clock, range(1, 13))
            bar.write("done")
        assert stream.getvalue() == ""


def test_values_are_converted_only_when_they_are_shown():
    class Loss:
        conversions = 0

        def __float__(self):
            Loss.conversions += 1
            return 1.0

    clock = Clock()
    bar = ProgressBar(100, 8, stream=io.StringIO(), clock=clock, interval_seconds=10)
    for step in range(1, 10):
        bar.update(step, loss=Loss())
        clock.advance(0.1)
    assert Loss.conversions == 2  # both at the first step
