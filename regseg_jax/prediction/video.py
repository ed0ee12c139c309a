"""Overlays and class maps of video files, by PyAV."""

import contextlib
import dataclasses
import fractions
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from regseg_jax.data.notices import say_once
from regseg_jax.prediction.engine import Failures, Predictor, map_ahead, predict_batches
from regseg_jax.prediction.inputs import Input
from regseg_jax.prediction.outputs import ClassMapFormat, Drawing
from regseg_jax.reports.pictures import draw_legend, draw_overlay, save_png
from regseg_jax.runtime.files import replacing

_CODEC = "libx264"
_QUALITY = {"crf": "18"}  # hardly distinguishable from the original


@dataclasses.dataclass(frozen=True)
class VideoWriter:
    """Writes `NAME_overlay.mp4`, and `NAME/000000.png`, the class map of each frame.

    Attributes:
      folder: where to.
      class_maps: how class maps are encoded.
      drawing: what is drawn.
    """

    folder: pathlib.Path
    class_maps: ClassMapFormat
    drawing: Drawing

    @contextlib.contextmanager
    def open_overlay(self, name: str, stream: Any) -> Iterator["_OverlayFile | None"]:
        """The file of overlays, complete if the block ends without error; None if not wanted."""
        if not self.drawing.overlays:
            yield None
            return
        import av

        path = self.drawing.get_video_paths(self.folder, name)[-1]
        with (
            replacing(path) as partial,
            av.open(partial, "w", format="mp4") as container,
        ):
            file = _OverlayFile(container, stream)
            yield file
            file.finish()

    def draw(
        self, name: str, index: int, image: np.ndarray, prediction: np.ndarray
    ) -> np.ndarray | None:
        """Writes the class map of a frame and returns its overlay, if they are wanted."""
        if self.drawing.class_maps:
            path = self.folder / name / f"{index:06d}.png"
            save_png(self.class_maps.encode(prediction), path)
        if not self.drawing.overlays:
            return None
        table = self.class_maps.class_table
        overlay = np.asarray(
            draw_overlay(image, prediction, table, self.drawing.alpha, legend=False)
        )
        if self.drawing.legend:  # of all classes, so that frames are of one size
            legend = draw_legend(table, range(table.num_classes), image.shape[1])
            overlay = np.concatenate([overlay, np.asarray(legend)])
        return overlay


@dataclasses.dataclass(frozen=True)
class _Frame:
    path: str  # for messages
    index: int
    pts: int | None
    time_base: fractions.Fraction | None


def predict_video(
    video: Input, predictor: Predictor, writer: VideoWriter, failures: Failures
) -> None:
    """Predicts every frame, in batches, while others are decoded and encoded.

    Frames keep their times; sound is not copied. Rotated videos, as from phones, are read
    upright.

    Args:
      video: the file.
      predictor: of the frames.
      writer: of the predictions.
      failures: gets the file if it cannot be read, else its broken frames, which are left
        out.
    """
    import av

    broken: list[str] = []
    try:
        with av.open(video.path) as container:
            if not container.streams.video:
                raise ValueError("it holds no video stream")
            _predict_frames(video, container, predictor, writer, broken)
    except (av.FFmpegError, ValueError) as error:
        failures.messages.append(f"cannot predict the video {video.path}: {error}")
    if broken:
        failures.messages.append(
            f"{video.path} without {len(broken)} broken frames ({', '.join(broken[:3])}"
            + (", ...)" if len(broken) > 3 else ")")
        )


def _predict_frames(
    video: Input, container: Any, predictor: Predictor, writer: VideoWriter, broken: list[str]
) -> None:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    if container.streams.audio and writer.drawing.overlays:
        say_once("the sound of videos is not copied", video.path)

    def draw(result: tuple[_Frame, np.ndarray, Any]) -> tuple[_Frame, np.ndarray | None]:
        frame, image, prediction = result
        if isinstance(prediction, ValueError):
            raise prediction
        return frame, writer.draw(video.name, frame.index, image, prediction)

    frames = _read_ahead(_read_frames(container, stream, broken))
    drawn = map_ahead(draw, predict_batches(frames, predictor))
    total = stream.frames or _estimate_frames(container, stream)
    count = 0
    with (
        writer.open_overlay(video.name, stream) as overlays,
        tqdm(desc=video.path.name, total=total, unit="frame", disable=None) as progress,
    ):
        for frame, overlay in drawn:
            count += 1
            progress.update()
            if overlays is not None:
                overlays.add(overlay, frame)
        if not count:
            raise ValueError("it has no frame that can be decoded")


def _read_frames(
    container: Any, stream: Any, broken: list[str]
) -> Iterator[tuple[_Frame, np.ndarray]]:
    """The frames with their pictures uint8[H, W, 3]; adds a line to `broken` for the others."""
    import av

    index = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            when = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.3f} s"
            broken.append(f"a broken frame{when} ({error})")
            continue
        for frame in frames:
            if frame.is_corrupt:
                broken.append(f"the broken frame {index} at {frame.time or 0:.3f} s")
            else:
                picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                place = _Frame(f"frame {index}", index, frame.pts, frame.time_base)
                yield place, np.ascontiguousarray(picture)
            index += 1


def _read_ahead(frames: Iterator[tuple]) -> Iterator[tuple]:
    """The same, decoded in a thread: in one, because a frame needs those before it."""
    end = object()
    taken = map_ahead(lambda it: next(it, end), itertools.repeat(frames), num_threads=1)
    yield from itertools.takewhile(lambda item: item is not end, taken)


def _estimate_frames(container: Any, stream: Any) -> int | None:
    """From duration and frame rate, for files that do not give their number of frames."""
    if container.duration is None or stream.average_rate is None:
        return None
    return round(container.duration / 1_000_000 * stream.average_rate)


class _OverlayFile:
    """Encodes overlays, opened at the size of the first one."""

    def __init__(self, container: Any, source: Any):
        self._container, self._source, self._stream = container, source, None

    def add(self, overlay: np.ndarray, frame: _Frame) -> None:
        """Encodes a picture uint8[H, W, 3] at the time of its frame."""
        import av

        height, width = overlay.shape[:2]
        # The codec halves the colours' resolution, so sides are even.
        overlay = np.pad(overlay, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            rate = self._source.average_rate or 25
            self._stream = self._container.add_stream(_CODEC, rate=rate, options=dict(_QUALITY))
            self._stream.height, self._stream.width = overlay.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = frame.time_base or 1 / fractions.Fraction(rate)
        picture = av.VideoFrame.from_ndarray(overlay, format="rgb24")
        picture.pts = frame.index if frame.pts is None else frame.pts
        picture.time_base = self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Encodes what the codec still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
