"""What a run logs: JSON lines, TensorBoard events, pictures."""

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from regseg_jax.reports.pictures import save_png
from regseg_jax.runtime.files import replacing

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Writes a run's metrics and pictures into its workdir.

    `metrics.jsonl` gets one line per call, `tensorboard/` the same as events, `pictures/` the PNGs.
    A half-written last line, left by a killed run, is removed on opening.

    Args:
      workdir: the run's folder; created if it is missing.
      enabled: False makes every call do nothing, for all but the first process of a run.
      resume_step: the last finished step of the run that is resumed. What was written for
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
            # Unbounded: if the disk is full its thread dies, and a full queue would wait for it
            # for ever; the JSON line that is written with each event raises instead.
            max_queue=0,
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
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"cannot write {self._file.name}: {error}; the last checkpoint is kept. Make room "
                "or make the folder writable, and start again"
            ) from error
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
        """Writes TensorBoard's pending events to disk; the JSON lines already are."""
        if self._enabled:
            self._summary_writer.flush()

    def close(self) -> None:
        """Writes what is pending and closes the files; a second call does nothing."""
        if self._enabled:
            self._enabled = False
            with contextlib.suppress(OSError):  # a failed write has raised already
                self._file.close()
            self._summary_writer.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`, leaving out a half-written last line.

    Raises:
      ValueError: if another line is not a JSON object with a step.
    """
    return [_parse_line(path, *numbered) for numbered in enumerate(_whole_lines(path), 1)]


def _whole_lines(path: str | os.PathLike) -> list[bytes]:
    return [line for line in Path(path).read_bytes().splitlines(True) if line.endswith(b"\n")]


def _parse_line(path: str | os.PathLike, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(
            f"{path}, line {number} is not a record with a step; delete the line: {line[:80]!r}"
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
    with replacing(path) as partial:
        partial.write_bytes(b"".join(lines))
