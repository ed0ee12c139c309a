import dataclasses
import json
import re

import numpy as np
import pytest
import small_import
from PIL import Image

from regseg_jax.data.classes import CAMVID
from regseg_jax.export.export import create_trained_metadata
from regseg_jax.prediction.tiles import Tiling
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runs.predict import Options, predict, predict_split
from regseg_jax.runs.trained import Trained, load_run
from regseg_jax.weights.metadata import find_class_table


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of CamVid's classes with random weights."""
    return small_import.create_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def photos(tmp_path):
    """Pictures of two sizes and several formats, and what else is in such folders."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name in ("a.png", "b.webp", "trip/c.tif", "trip/day 2/d.JFIF", "trip/c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        size = (32, 48, 3) if name < "c" else (48, 32, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / name)
    (folder / "._a.png").write_bytes(b"macOS")
    (folder / "notes.txt").write_text("")
    return folder


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_of_everything(workdir, photos, tmp_path, capsys):
    paths = predict(workdir, [photos], tmp_path / "out")
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    stems = ("a", "b", "trip/c.tif", "trip/c.jpg", "trip/day 2/d")
    expected = {f"{s}{end}" for s in stems for end in (".png", "_overlay.png")}
    assert names == expected | {"classes.json"}
    assert set(paths) == {tmp_path / "out" / name for name in expected}
    printed = capsys.readouterr().out
    assert "notes.txt" in printed
    assert "._a.png" in printed
    assert read(tmp_path / "out" / "a.png").shape == (32, 48)
    assert read(tmp_path / "out" / "trip/day 2/d.png").shape == (48, 32)


def test_one_unreadable_image_is_named_at_the_end(workdir, photos, tmp_path):
    data = (photos / "a.png").read_bytes()
    (photos / "truncated.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"^1 of 6 could not be predicted: .*truncated\.png"):
        predict(workdir, [photos], tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*_overlay.png"))) == 5


def test_class_maps_hold_the_label_files_values(workdir, photos, tmp_path):
    predict(workdir, [photos / "a.png"], tmp_path / "ids")
    predict(workdir, [photos / "a.png"], tmp_path / "train_ids", Options(train_ids=True))
    train_ids = read(tmp_path / "train_ids" / "a.png")
    assert len(np.unique(train_ids)) > 2
    np.testing.assert_array_equal(
        read(tmp_path / "ids" / "a.png"), np.array(CAMVID.label_ids)[train_ids]
    )
    for folder, values in (("ids", CAMVID.label_ids), ("train_ids", range(11))):
        classes = json.loads((tmp_path / folder / "classes.json").read_text())
        assert {row["name"]: row["value"] for row in classes} == dict(
            zip(CAMVID.class_names, values, strict=True)
        )


def test_labels_that_are_training_ids_stay_so(workdir):
    run = load_run(workdir)
    assert run.class_table.label_ids == CAMVID.label_ids

    def with_format(label_format):
        rows = tuple(
            (i, name, color, 20 + i)
            for i, (name, color) in enumerate(zip(CAMVID.class_names, CAMVID.colors, strict=True))
        )
        config = dataclasses.replace(
            run.config,
            data=dataclasses.replace(run.config.data, source="folder"),
            folder=dataclasses.replace(run.config.folder, classes=rows, label_format=label_format),
        )
        other = Trained.from_run(dataclasses.replace(run, config=config))
        # The same by the run and by what is exported of it.
        exported, _ = find_class_table(create_trained_metadata(other), CAMVID.num_classes)
        assert other.class_table == exported
        return exported.label_ids

    assert with_format("train_ids") == tuple(range(11))
    assert with_format("ids") == with_format("colors") == tuple(range(20, 31))


def test_tiles_are_asked_for(workdir, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 200, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    predict(workdir, [tmp_path / "wide.png"], tmp_path / "whole")
    predict(workdir, [tmp_path / "wide.png"], tmp_path / "out", Options(tiling=Tiling(64, 64, 48)))
    whole, tiles = read(tmp_path / "whole/wide.png"), read(tmp_path / "out/wide.png")
    assert tiles.shape == whole.shape
    assert 0.5 < (tiles == whole).mean() < 1  # its global means are those of the tiles


@pytest.mark.parametrize(
    ("paths", "output"), [(["a.png"], "."), (["a.png", "a_overlay.png"], "out")]
)
def test_no_image_and_no_prediction_is_replaced(photos, paths, output):
    Image.new("RGB", (4, 4)).save(photos / "a_overlay.png")
    before = (photos / "a.png").read_bytes()
    message = f"would replace another input or its predictions: {re.escape(str(photos))}"
    with pytest.raises(ValueError, match=message):
        predict(photos / "no run", [photos / path for path in paths], photos / output)
    assert (photos / "a.png").read_bytes() == before


def test_options_that_the_run_does_not_have(workdir, photos, tmp_path):
    with pytest.raises(ValueError, match=r"--ema: .* has no averaged weights"):
        predict(workdir, [photos], tmp_path / "out", Options(ema=True))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"--scales is \(1\.0, -1\.0\)"):
        Options(scales=(1.0, -1.0))


def test_weights_without_a_run(workdir, photos, tmp_path):
    trained = Trained.from_weights(str(workdir.parent / "weights.pth"), small_import.NAME)
    predict(trained, [photos / "a.png"], tmp_path / "weights")
    predict(workdir, [photos / "a.png"], tmp_path / "run")
    for name in ("a.png", "classes.json"):
        assert (tmp_path / "weights" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_split_that_was_held_back_is_the_run_s_own(workdir, tmp_path, monkeypatch):
    """Images that came later do not change which ones the run has not seen."""
    run = load_run(workdir)
    rows = tuple(
        (i, name, color, i)
        for i, (name, color) in enumerate(zip(CAMVID.class_names, CAMVID.colors, strict=True))
    )

    def add_images(prefix):
        for folder, mode in (("images", "RGB"), ("labels", "L")):
            (tmp_path / "data" / "train" / folder).mkdir(parents=True, exist_ok=True)
            for i in range(10):
                path = tmp_path / "data" / "train" / folder / f"{prefix}{i}.png"
                Image.new(mode, (48, 32)).save(path)

    config = dataclasses.replace(
        run.config,
        data=dataclasses.replace(run.config.data, source="folder", data_dir=str(tmp_path / "data")),
        folder=dataclasses.replace(run.config.folder, classes=rows, val_fraction=0.3),
    )
    add_images("x")
    create_dataset(config).keep_val_split(tmp_path / "run")
    held_back = json.loads((tmp_path / "run" / "val_split.json").read_text())["names"]
    add_images("y")
    monkeypatch.setattr(
        "regseg_jax.runs.predict.load_run", lambda _: dataclasses.replace(run, config=config)
    )
    written = predict_split(tmp_path / "run", "val", tmp_path / "out")
    assert [path.name for path in written] == held_back
