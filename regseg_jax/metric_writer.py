"""What a run tells its user: JSON lines, TensorBoard events, pictures, a progress bar, tables."""

import contextlib
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from regseg_jax.visualize import save_png

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Writes a run's metrics and pictures into its workdir.

    `metrics.jsonl` gets a line a call, `tensorboard/` the same as events, `pictures/` the PNGs.
    A half-written last line, left by a killed run, is removed on opening.

    Args:
      workdir: the run's folder; created where missing.
      enabled: False makes every call do nothing, for all but the first process of a run.
      resume_step: the last finished step of the run that goes on here. What was written for
        later steps is dropped, so that nothing appears twice. None keeps everything.
    """

    def __init__(
        self, workdir: str | os.PathLike, enabled: bool = True, resume_step: int | None = None
    ):
        self._enabled = enabled
        if not enabled:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._pictures = workdir / "pictures"
        metrics_path = workdir / METRICS_FILE
        if metrics_path.exists():
            _repair(metrics_path, resume_step)
        self._file = metrics_path.open("ab")
        self._summary_writer = SummaryWriter(
            str(workdir / "tensorboard"),
            # TensorBoard hides the events from this step on that earlier files hold.
            purge_step=None if resume_step is None else resume_step + 1,
            flush_secs=30,
            # Event files are named by the second: a quick restart would overwrite the last one.
            filename_suffix=f".{time.time_ns()}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one record: `{"step": step, "time": ISO 8601 in UTC, **scalars}`.

        Args:
          step: the training step that the values belong to.
          scalars: values that `float` takes, by tags like `train/loss`. NaN and infinity become
            null in the JSON line.
        """
        if not self._enabled:
            return
        values = {tag: float(value) for tag, value in scalars.items()}
        record = {
            "step": int(step),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            **{tag: value if math.isfinite(value) else None for tag, value in values.items()},
        }
        # Buffered and flushed at once: a line is a single write, which a killed run cannot mix up.
        # It comes before the events, since a full disk raises here, but silently ends
        # tensorboardX's thread.
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()
        for tag, value in values.items():
            self._summary_writer.add_scalar(tag, value, step)

    def write_images(self, step: int, images: Mapping[str, Image.Image | np.ndarray]) -> None:
        """Writes pictures to TensorBoard and to `pictures/TAG_STEP.png`, `/` in TAG being `_`.

        Args:
          step: the training step that they belong to.
          images: RGB pictures, or uint8 arrays [H, W, 3], by tags like `val/panel_0`.
        """
        if not self._enabled:
            return
        for tag, image in images.items():
            save_png(image, self._pictures / f"{tag.replace('/', '_')}_{step}.png")
            self._summary_writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def flush(self) -> None:
        """Brings the events that TensorBoard's thread has taken to disk; lines already are."""
        if self._enabled:
            self._summary_writer.flush()

    def close(self) -> None:
        """Writes what is pending and closes the files; a second call does nothing."""
        if self._enabled:
            self._enabled = False
            self._file.close()
            self._summary_writer.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`, leaving out a half-written last line.

    Raises:
      ValueError: if another line is not a JSON object with a step.
    """
    return [_parse_line(path, *numbered) for numbered in enumerate(_whole_lines(path), 1)]


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligns a table for the terminal: the first column to the left, the others to the right.

    Args:
      headers: a title for each column.
      rows: a cell for each column; written as `str` gives them.

    Returns:
      The lines, without a newline at the end.

    Raises:
      ValueError: if a row has more or fewer cells than there are headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"row {tuple(row)} has {len(row)} cells for {len(headers)} headers")
    table = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


class ProgressBar:
    """Shows how far training is: a bar on a terminal, else a plain line every few seconds.

    Rates are measured from the end of the first step in this process, which compiles, so they
    and the time left hold for a resumed run too. Values are converted to floats only when
    they are shown, so that JAX's asynchronous dispatch is not held up at every step.

    Args:
      total_steps: the step at which the run ends.
      batch_size: images a step.
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
        self._first_step: int | None = None  # where the rates start; None until it is done
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
                # tqdm's own rates would count the compilation.
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
        """Wraps evaluation and the like: left out of the rates, but not of the time left."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def update(self, step: int, **values: Any) -> None:
        """Takes the number of steps done, and the values to show beside it.

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
        """The rates so far; empty until the second step of this process is done.

        Returns:
          `images_per_second`, `input_wait_share` (of the time in training, in [0, 1]) and
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


def _whole_lines(path: str | os.PathLike) -> list[bytes]:
    return [line for line in Path(path).read_bytes().splitlines(True) if line.endswith(b"\n")]


def _parse_line(path: str | os.PathLike, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(
            f"{path}, line {number} is no record with a step: delete it: {line[:80]!r}"
        )
    return record


def _repair(path: Path, resume_step: int | None) -> None:
    """Drops a half-written last line, and the records after `resume_step`; atomic."""
    lines = _whole_lines(path)
    if resume_step is not None:
        lines = [
            line
            for number, line in enumerate(lines, 1)
            if _parse_line(path, number, line)["step"] <= resume_step
        ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(b"".join(lines))
    os.replace(temporary, path)
