"""What a new run does with its data before anything is trained."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from regseg_jax.config import create_default_config
from regseg_jax.runs.run import Run


@pytest.fixture
def config(tmp_path):
    """Ten images of two classes, of which no label shows the second; half of each is ignored."""
    label = np.full((8, 8), 255, np.uint8)
    label[:3] = 0
    for i in range(10):
        for folder, array in (("images", np.zeros((8, 8, 3), np.uint8)), ("labels", label)):
            path = tmp_path / "data" / "train" / folder / f"x{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    config = create_default_config()
    config.data.source = "folder"
    config.data.data_dir = str(tmp_path / "data")
    config.folder.val_fraction = 0.2
    config.folder.classes = ((0, "a", (1, 0, 0), 0), (1, "b", (0, 1, 0), 1))
    config.global_batch_size = 8
    return config


def test_a_held_back_split_is_written_down_and_what_looks_wrong_is_said(config, tmp_path, capsys):
    with contextlib.closing(Run.create(config, tmp_path / "run")) as run:
        names = [f"{example['name']}.png" for example in run.eval_source]
    assert (len(run.train_source), len(run.eval_source)) == (8, 2)
    saved = json.loads((tmp_path / "run" / "val_split.json").read_text())
    assert saved["names"] == names
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    for split, labelled in (("train", 192), ("val", 48)):
        assert any(f"{split} split holds 'b': 0 of {labelled} " in line for line in warnings)
        assert any(f"62.5% of the {split} split's pixels are ignored" in line for line in warnings)
    saved["names"] = ["x0.png", "x9.png"]
    (tmp_path / "run" / "val_split.json").write_text(json.dumps(saved))
    with contextlib.closing(Run.create(config, tmp_path / "run")) as again:
        assert [example["name"] for example in again.eval_source] == ["x0", "x9"]


def test_class_weights_are_counted_before_training_and_kept(config, tmp_path):
    config.loss.class_weights = "median_frequency"
    with contextlib.closing(Run.create(config, tmp_path / "run")) as run:
        assert run.class_weights == (1.0, 1.0)
    saved = json.loads((tmp_path / "run" / "class_weights.json").read_text())
    assert saved["pixels_per_class"] == {"a": 192, "b": 0}
    config.loss.class_weights = (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="positive number for each of the 2 classes"):
        Run.create(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_class_table_can_be_fixed_after_the_images_were_refused(config, tmp_path):
    config.folder.ignored_label_ids = ()
    with pytest.raises(ValueError, match=r"label values \[255\]"):
        Run.create(config, tmp_path / "run")
    config.folder.ignored_label_ids = (255,)
    Run.create(config, tmp_path / "run").close()
