import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import CAMVID
from regseg_jax.prediction.engine import Failures, Predictor
from regseg_jax.prediction.inputs import Input
from regseg_jax.prediction.outputs import ClassMapFormat, Drawing
from regseg_jax.prediction.video import VideoWriter, predict_video

av = pytest.importorskip("av", reason="needs PyAV, the extra [video]")
HEIGHT, WIDTH, RATE, LENGTH = 48, 64, 10, 25


def bright(variables, images, size):
    """Class 1 where red is bright, else class 0."""
    return jax.nn.one_hot((images[..., 0] > 127).astype(int), 11)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> pathlib.Path:
    """A white bar that moves 2 pixels a frame."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "10", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(LENGTH):
            picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            picture[:, 2 * i : 2 * i + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def predict(path, output, drawing=Drawing()):  # noqa: B008  frozen
    failures = Failures()
    writer = VideoWriter(output, ClassMapFormat(CAMVID, CAMVID.label_ids), drawing)
    predict_video(Input(path, "sub/clip"), Predictor(bright, {}), writer, failures)
    return failures.messages


def read(path):
    with av.open(path) as container:
        stream = container.streams.video[0]
        return [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(stream)]


def test_every_frame_gets_its_own_overlay_at_its_own_time(clip, tmp_path):
    assert predict(clip, tmp_path, Drawing(alpha=1.0)) == []
    frames = read(tmp_path / "sub/clip_overlay.mp4")
    assert [round(time, 3) for time, _ in frames] == [i / RATE for i in range(LENGTH)]
    for i, (_, picture) in enumerate(frames):
        assert picture.shape == (HEIGHT, WIDTH, 3)
        bar, rest = CAMVID.colors[1], CAMVID.colors[0]
        np.testing.assert_allclose(picture[HEIGHT // 2, 2 * i + 4], bar, atol=16)
        np.testing.assert_allclose(picture[HEIGHT // 2, (2 * i + 40) % WIDTH], rest, atol=16)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["clip_overlay.mp4"]


def test_class_maps_alone(clip, tmp_path):
    assert predict(clip, tmp_path, Drawing(class_maps=True, overlays=False)) == []
    maps = sorted((tmp_path / "sub/clip").iterdir())
    assert [p.name for p in maps] == [f"{i:06d}.png" for i in range(LENGTH)]
    assert not list(tmp_path.rglob("*.mp4"))
    for i, path in enumerate(maps):
        row = np.asarray(Image.open(path))[HEIGHT // 2]
        assert row[2 * i + 4] == CAMVID.label_ids[1]
        assert row[(2 * i + 40) % WIDTH] == CAMVID.label_ids[0]


def test_the_legend_has_one_size_for_all_frames(clip, tmp_path):
    assert predict(clip, tmp_path, Drawing(legend=True)) == []
    shapes = {picture.shape for _, picture in read(tmp_path / "sub/clip_overlay.mp4")}
    ((height, width, _),) = shapes
    assert width == WIDTH
    assert height > HEIGHT
    assert height % 2 == 0


def test_broken_frames_are_said_and_left_out(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    with av.open(clip) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        places = [(p.pos, p.size) for p in packets]
    start, size = places[12]
    data[start + 4 : start + size] = bytes(b ^ 0x5A for b in data[start + 4 : start + size])
    (tmp_path / "broken.mp4").write_bytes(data)
    (message,) = predict(tmp_path / "broken.mp4", tmp_path)
    assert "broken.mp4 without" in message
    assert "broken frame" in message
    assert 10 < len(read(tmp_path / "sub/clip_overlay.mp4")) < LENGTH


def test_files_that_are_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (message,) = predict(tmp_path / "a.mp4", tmp_path / "out")
    assert message.startswith(f"cannot predict the video {tmp_path / 'a.mp4'}: ")
    assert not (tmp_path / "out").exists()


def test_a_video_that_lies_on_its_side_is_read_upright(tmp_path):
    """As phones make them: stored turned, with the rotation that turns it back."""
    upright = np.zeros((WIDTH, HEIGHT, 3), np.uint8)
    upright[:8] = 255  # a bar at the top
    with av.open(tmp_path / "turned.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.set_display_rotation(90)  # counter-clockwise
        picture = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(np.rot90(upright, -1)), format="rgb24"
        )
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert predict(tmp_path / "turned.mp4", tmp_path, Drawing(class_maps=True)) == []
    labels = np.asarray(Image.open(tmp_path / "sub/clip/000000.png"))
    assert labels.shape == (WIDTH, HEIGHT)
    assert (labels[2:6] == CAMVID.label_ids[1]).all()
    assert (labels[12:] == CAMVID.label_ids[0]).all()
