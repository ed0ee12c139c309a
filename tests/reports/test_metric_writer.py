import datetime
import io
import json

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from regseg_jax.reports.metric_writer import MetricWriter, read_metrics


def read_events(workdir):
    """Each event file's events, the oldest file first: TFRecords, whose checksums are skipped."""
    files = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, events = path.read_bytes(), []
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        files.append(events)
    return files


def write_steps(workdir, steps, **kwargs):
    with MetricWriter(workdir, **kwargs) as writer:
        for step in steps:
            writer.write_scalars(step, {"train/loss": step / 2})


def steps_of(workdir):
    return [record["step"] for record in read_metrics(workdir / "metrics.jsonl")]


def test_scalars_become_json_lines_and_events(tmp_path):
    with MetricWriter(tmp_path / "run") as writer:
        writer.write_scalars(3, {"train/loss": np.float32(0.5), "train/learning_rate": 0.25})
        # On disk before the writer is closed.
        (record,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    time = datetime.datetime.fromisoformat(record.pop("time"))
    assert time.utcoffset() == datetime.timedelta(0)
    assert record == {"step": 3, "train/loss": 0.5, "train/learning_rate": 0.25}
    (events,) = read_events(tmp_path / "run")
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(3, "train/loss", 0.5), (3, "train/learning_rate", 0.25)]


def test_non_finite_values_are_null(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars(1, {"nan": float("nan"), "inf": np.float32(np.inf), "one": 1.0})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (record["nan"], record["inf"], record["one"]) == (None, None, 1.0)


def test_images_become_pngs_and_events(tmp_path):
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    with MetricWriter(tmp_path) as writer:
        writer.write_images(7, {"val/panel_0": array, "val/panel_1": Image.fromarray(array)})
    for name in ("val_panel_0_7.png", "val_panel_1_7.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pictures" / name)), array)
    (events,) = read_events(tmp_path)
    values = [value for event in events for value in event.summary.value]
    assert [value.tag for value in values] == ["val/panel_0", "val/panel_1"]
    decoded = Image.open(io.BytesIO(values[0].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), array)


def test_half_written_last_line_is_ignored_and_repaired(tmp_path):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 3, "train/lo')
    assert steps_of(tmp_path) == [1, 2]
    write_steps(tmp_path, [3])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_resumed_run_has_no_duplicates(tmp_path):
    write_steps(tmp_path, [10, 20, 30, 40])
    write_steps(tmp_path, [30, 40, 50], resume_step=20)
    assert steps_of(tmp_path) == [10, 20, 30, 40, 50]
    # Both event files survive though they were opened within a second; the second one tells
    # TensorBoard from which step on the first is void.
    first, second = read_events(tmp_path)
    assert [event.step for event in first if event.summary.value] == [10, 20, 30, 40]
    assert [event.step for event in second if event.HasField("session_log")] == [21]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_resuming_at_step_0_starts_afresh(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [1], resume_step=0)
    assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize("line", ["oops", "[1]", '{"train/loss": 1.0}', "{"])
def test_broken_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 "):
        read_metrics(path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 "):
        MetricWriter(tmp_path, resume_step=1)


def test_disabled_writer_does_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", enabled=False, resume_step=3) as writer:
        writer.write_scalars(1, {"train/loss": 1.0})
        writer.write_images(1, {"image": np.zeros((2, 2, 3), np.uint8)})
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_close_twice(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.flush()
    writer.close()
    writer.close()
