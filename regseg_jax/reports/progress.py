"""The progress bar of a run: throughput, fraction of time waiting for input, time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self, TextIO

from tqdm import tqdm


class _Mark(NamedTuple):
    """Where a run was at a moment: its step, the clock, seconds spent waiting and paused so far."""

    step: int
    time: float
    waited: float
    paused: float


class ProgressBar:
    """Shows how far training is: a bar on a terminal, else a plain line every few seconds.

    Nothing is measured before the end of this process's first step, which compiles, so throughput
    and time left are right for a resumed run too. Values are converted to floats only when
    they are shown, so that JAX's asynchronous dispatch is not held up at every step.

    Args:
      total_steps: the step at which the run ends.
      batch_size: images per step.
      start_step: the steps already done when the bar is created.
      interval_seconds: between two plain lines.
      stream: where to; standard error by default.
      enabled: False shows nothing, for all but the first process of a run.
      clock: the time in seconds.
    """

    _BAR_INTERVAL_SECONDS = 0.5

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        *,
        start_step: int = 0,
        interval_seconds: float = 10.0,
        stream: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        self._clock = clock
        self._step = start_step
        self._values: dict[str, Any] = {}
        self._first: _Mark | None = None  # the time left counts from here
        self._last: _Mark | None = None  # and the throughput of a record from here
        self._waited = self._paused = 0.0
        self._shown_step: int | None = None
        self._shown_time = 0.0
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                dynamic_ncols=True,
                # tqdm's own throughput would count the compilation.
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        self._interval = interval_seconds if self._bar is None else self._BAR_INTERVAL_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wraps the fetching of a batch: its time is the time waited for input."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wraps evaluation and the like: not counted in the throughput, but in the time left."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def update(self, step: int, **values: Any) -> None:
        """Takes the number of steps done, and the values to show next to it.

        Args:
          step: steps done since the run began, those before a resume included.
          **values: what `float` takes, shown in this order: `loss=`, `learning_rate=`.
        """
        self._step, self._values = step, values
        if self._first is None:
            for value in values.values():
                float(value)  # waits until the device has done the step
            self._first = self._last = self._mark()
            self._show()
        elif self._clock() - self._shown_time >= self._interval:
            self._show()

    def take_rates(self) -> dict[str, float]:
        """The throughput since the last call, for a record; nothing if no step was done since.

        Returns:
          `images_per_second`, `input_wait_share` (fraction of the training time, in [0, 1]) and
          `seconds_left`, which is estimated from all steps of this process.
        """
        rates = self._rates_since(self._last)
        if rates:
            self._last = self._mark()
        return rates

    def _mark(self) -> _Mark:
        return _Mark(self._step, self._clock(), self._waited, self._paused)

    def _rates_since(self, begin: _Mark | None) -> dict[str, float]:
        if begin is None or self._step <= begin.step:
            return {}
        now = self._mark()
        training = max(now.time - begin.time - (now.paused - begin.paused), 1e-9)
        seconds_per_step = max(now.time - self._first.time, 1e-9) / (now.step - self._first.step)
        return {
            "images_per_second": (now.step - begin.step) * self._batch_size / training,
            "input_wait_share": (now.waited - begin.waited) / training,
            "seconds_left": (self._total_steps - now.step) * seconds_per_step,
        }

    def write(self, message: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        elif self._enabled:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last step, if it was not yet, and ends the bar."""
        if self._first is not None and self._shown_step != self._step:
            self._show()
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        if not self._enabled:
            return
        # Converting waits for the device, so the clock is read after it.
        parts = [f"{name.replace('_', ' ')} {float(v):.4g}" for name, v in self._values.items()]
        rates = self._rates_since(self._first)
        if rates:
            parts.append(f"{rates['images_per_second']:.1f} images/s")
            parts.append(f"{rates['input_wait_share']:.0%} waiting for input")
            parts.append(f"{tqdm.format_interval(rates['seconds_left'])} left")
        text = ", ".join(parts)
        if self._bar is not None:
            self._bar.n = self._step
            self._bar.set_postfix_str(text)
        else:
            self.write(f"step {self._step}/{self._total_steps}, {text}")
        self._shown_step, self._shown_time = self._step, self._clock()
