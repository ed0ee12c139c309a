"""The progress bar of a run: throughput, fraction of time waiting for input, time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TextIO

from tqdm import tqdm


class ProgressBar:
    """Shows how far training is: a bar on a terminal, else a plain line every few seconds.

    Throughput is measured from the end of this process's first step, which compiles, so it
    and the time left are right for a resumed run too. Values are converted to floats only when
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
        self._first_step: int | None = None  # throughput counts from here
        self._first_time = self._waited = self._paused = 0.0
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
        if self._first_step is None:
            for value in values.values():
                float(value)  # waits until the device has done the step
            self._first_step, self._first_time = step, self._clock()
            self._waited = self._paused = 0.0
            self._show()
        elif self._clock() - self._shown_time >= self._interval:
            self._show()

    def rates(self) -> dict[str, float]:
        """The throughput so far; empty until the second step of this process is done.

        Returns:
          `images_per_second`, `input_wait_share` (fraction of the training time, in [0, 1]) and
          `seconds_left`.
        """
        if self._first_step is None or self._step <= self._first_step:
            return {}
        elapsed = max(self._clock() - self._first_time, 1e-9)
        training = max(elapsed - self._paused, 1e-9)
        steps = self._step - self._first_step
        return {
            "images_per_second": steps * self._batch_size / training,
            "input_wait_share": self._waited / training,
            "seconds_left": (self._total_steps - self._step) * elapsed / steps,
        }

    def write(self, message: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        elif self._enabled:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last step, if it was not yet, and ends the bar."""
        if self._first_step is not None and self._shown_step != self._step:
            self._show()
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        if not self._enabled:
            return
        # Converting waits for the device, so the clock is read after it.
        parts = [f"{name.replace('_', ' ')} {float(v):.4g}" for name, v in self._values.items()]
        rates = self.rates()
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
