"""The description of a model and of a data set, as commands."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from regseg_jax import describe
from regseg_jax.config import Config, create_default_config, flatten_config
from regseg_jax.models.regseg import create_model
from regseg_jax.reports.metric_writer import MetricWriter
from regseg_jax.runtime.files import write_json

ROOT = pathlib.Path(__file__).parents[1]


def test_describe_model_prints_and_writes(tmp_path, capsys):
    model = create_model("exp43_decoder12", num_classes=2)
    describe.describe_model(model, (64, 96), tmp_path / "new")
    path = tmp_path / "new" / "field_of_view_exp43_decoder12.png"
    output = capsys.readouterr().out
    assert output.startswith("exp43_decoder12, 2 classes, images of 64 x 96\n")
    assert output.endswith(f"wrote {path}\n")
    with Image.open(path) as picture:
        assert picture.mode == "RGB"


def _describe(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "regseg_jax.describe", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command_with_an_unknown_model():
    result = _describe("--model=exp48_decoder99")
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("regseg_jax.describe: error: unknown model 'exp48_decoder99'")


@pytest.fixture
def config(tmp_path):
    """Three classes: 0, 1 and 2, whose pixels are 1/2, 3/8 and 0; 1/8 is ignored."""
    label = np.repeat(np.array([0, 0, 0, 0, 1, 1, 1, 255], np.uint8)[None], 8, axis=0)
    for split, names in (("train", "abc"), ("val", "de")):
        for name in names:
            for folder, array in (("images", np.zeros((8, 8, 3), np.uint8)), ("labels", label)):
                path = tmp_path / split / folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    config = create_default_config()
    config.data.source = "folder"
    config.data.data_dir = str(tmp_path)
    config.folder.classes = tuple((i, f"c{i}", (i + 1, 9, 9), i) for i in range(3))
    config.folder.ignored_label_ids = (7, 255)
    return config


def test_describe_data_counts(config, tmp_path, capsys):
    describe.describe_data(config, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "data.json").read_text())
    assert found["images"] == {"train": 3, "val": 2}
    assert found["sizes"] == {"train": {"8 x 8": 3}, "val": {"8 x 8": 2}}
    assert found["pixels_per_class"] == {
        "train": {"c0": 96, "c1": 72, "c2": 0},
        "val": {"c0": 64, "c1": 48, "c2": 0},
    }
    assert found["ignored_pixels"] == {"train": 24, "val": 16}
    assert found["unused_values"] == {"train": ["2", "7"], "val": ["2", "7"]}
    assert found["unknown_values"] == {"train": {}, "val": {}}
    assert found["class_weights"]["median_frequency"] == pytest.approx(
        {"c0": 84 / 96, "c1": 84 / 72, "c2": 1}
    )
    assert [line.split(" holds ")[0] for line in found["warnings"]] == [
        "warning: no label of the train split",
        "warning: no label of the val split",
    ]
    output = capsys.readouterr().out
    (row,) = [line.split() for line in output.splitlines() if line.startswith("c1 ")]
    assert row == ["c1", "72", "42.86", "48", "42.86", "1.167", "2.698"]
    assert "  ignored: 24 of 192 pixels, 12.50 %" in output
    with Image.open(tmp_path / "out" / "data.png") as picture:
        assert picture.mode == "RGB"


def test_describe_data_reports_every_problem_at_once(config, tmp_path, capsys):
    train = tmp_path / "train"
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(train / "labels" / "a.png")
    (train / "images" / "b.png").write_text("nothing")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(train / "images" / "c.tif")
    (train / "images" / "c.png").unlink()
    (tmp_path / "val" / "labels" / "e.png").unlink()
    with pytest.raises(ValueError, match="4 problems in the data set"):
        describe.describe_data(config, tmp_path)
    found = json.loads((tmp_path / "data.json").read_text())
    assert found["unknown_values"] == {"train": {"99": 64}}
    assert found["images"] == {"train": 0}
    parts = ("a.png holds label values [99]", "cannot read", "32-bit floats", "1 images in")
    problems = sorted(found["problems"])
    for part in parts:
        assert sum(part in line for line in problems) == 1, part
    output = capsys.readouterr().out
    assert all(f"  {line}" in output.splitlines() for line in problems)
    assert not (tmp_path / "data.png").exists()


def test_command_on_a_folder_without_splits(tmp_path):
    result = _describe(
        *("--config=configs/folder.py", f"--config.data.data_dir={tmp_path}", "--data"),
        f"--output={tmp_path}",
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("2 problems in the data set; the list is above")
    for split in ("train", "val"):
        assert f"  {split}: there is no folder {tmp_path}/{split}/images" in result.stdout
    assert (tmp_path / "data.json").exists()


def _write_run(folder: pathlib.Path, *scores: float) -> pathlib.Path:
    write_json(folder / "config.json", flatten_config(Config()))
    with MetricWriter(folder) as writer:
        for i, score in enumerate(scores, 1):
            writer.write_scalars(10 * i, {"train/loss": 1 / i, "train/images_per_second": 5})
            writer.write_scalars(10 * i, {"val/mean_iou": score})
    return folder


def test_runs_are_compared(tmp_path, capsys):
    runs = [_write_run(tmp_path / "a", 0.25, 0.5, 0.375), _write_run(tmp_path / "b", 0.75)]
    describe.describe_runs(list(map(str, runs)), tmp_path / "out")
    _, _, *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows] == [
        [str(runs[0]), "30", "0.3333", "5.0", "val", "3", "37.50", "50.00", "20"],
        [str(runs[1]), "10", "1.0000", "5.0", "val", "1", "75.00", "75.00", "10"],
    ]
    assert last == f"wrote {tmp_path / 'out' / 'runs.png'}"
    with Image.open(tmp_path / "out" / "runs.png") as picture:
        assert picture.mode == "RGB"


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere holds no run"):
        describe.describe_runs([str(_write_run(tmp_path / "a", 0.5)), "nowhere"], tmp_path)
    with pytest.raises(ValueError, match=r"metrics.jsonl has no records: the run was imported"):
        describe.describe_runs([str(_write_run(tmp_path / "b"))], tmp_path)
    assert not (tmp_path / "runs.png").exists()


def test_flags_may_follow_the_runs(tmp_path):
    result = _describe("--runs", _write_run(tmp_path / "a", 0.5), f"--output={tmp_path}")
    assert result.stdout.splitlines()[-1] == f"wrote {tmp_path / 'runs.png'}"
