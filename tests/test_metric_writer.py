import datetime
import io
import json

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from regseg_jax.metric_writer import MetricWriter, ProgressBar, format_table, read_metrics


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


def test_table_is_aligned():
    table = format_table(["layer", "shape", "parameters"], [["stem", "3x3", 864], ["head", "", 7]])
    assert table.splitlines() == [
        "layer  shape  parameters",
        "-----  -----  ----------",
        "stem     3x3         864",
        "head                   7",
    ]


def test_table_of_no_rows():
    assert format_table(["a", "b"], []) == "a  b\n-  -"


def test_table_names_a_row_of_the_wrong_length():
    with pytest.raises(ValueError, match=r"\('x',\) has 1 cells for 2 headers"):
        format_table(["a", "b"], [["x"]])


class Clock:
    """A clock that stands still but for `advance`."""

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
    assert bar.rates() == {}
    run_steps(bar, clock, range(901, 902))
    assert bar.rates() == {}
    bar = ProgressBar(1000, 8, start_step=900, stream=io.StringIO(), clock=clock)
    run_steps(bar, clock, range(901, 912))
    rates = bar.rates()
    assert rates["images_per_second"] == pytest.approx(4)
    assert rates["input_wait_share"] == pytest.approx(0.25)
    assert rates["seconds_left"] == pytest.approx(89 * 2)


def test_pauses_count_in_the_time_left_only():
    clock = Clock()
    bar = ProgressBar(20, 8, stream=io.StringIO(), clock=clock)
    run_steps(bar, clock, range(1, 12))
    with bar.paused():
        clock.advance(20)
    rates = bar.rates()
    assert rates["images_per_second"] == pytest.approx(4)
    assert rates["input_wait_share"] == pytest.approx(0.25)
    assert rates["seconds_left"] == pytest.approx(9 * (10 * 2 + 20) / 10)


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
