import pathlib

import jax
import numpy as np
import pytest
import small_import
from PIL import Image

from regseg_jax.data.classes import CAMVID, CITYSCAPES, create_class_table
from regseg_jax.prediction.engine import Predictor
from regseg_jax.prediction.submission import check_whole, compute_fingerprint, write_label_ids
from regseg_jax.runs.predict import Options, predict_split


class Streets:
    """Images whose red channel is what `_predict` says; the names are Cityscapes'."""

    def __init__(self, length: int = 5):
        self.length, self.names = length, [f"berlin_{i:06d}_000019_leftImg8bit" for i in range(9)]
        self.images = np.random.default_rng(0).integers(0, 19, (9, 20, 30, 3)).astype(np.uint8)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == 7:
            raise ValueError("cannot read 7.png: it is truncated")
        return {"image": self.images[index], "label": None, "name": self.names[index]}


class RedPredictor(Predictor):
    """Predicts the red channel, and counts."""

    def __init__(self):
        super().__init__(lambda variables, images, size: jax.nn.one_hot(images[..., 0], 19), {})
        self.predicted = 0

    def start(self, images: list[np.ndarray]) -> jax.Array:
        self.predicted += len(images)
        return super().start(images)


def _write(source: Streets, output: pathlib.Path, fingerprint: str = "a1") -> int:
    """Returns how many images were predicted."""
    predictor = RedPredictor()
    paths = write_label_ids(source, predictor, CITYSCAPES, output, fingerprint)
    assert paths == [output / f"{source.names[i]}.png" for i in range(len(source))]
    return predictor.predicted


def test_label_ids_under_the_images_names(tmp_path):
    source = Streets()
    assert _write(source, tmp_path / "out") == 5
    assert len(list((tmp_path / "out").iterdir())) == 5
    for index in range(5):
        with Image.open(tmp_path / "out" / f"berlin_{index:06d}_000019_leftImg8bit.png") as image:
            assert image.mode == "L"
            label_ids = np.asarray(image)
        expected = np.array(CITYSCAPES.label_ids)[source.images[index][..., 0]]
        np.testing.assert_array_equal(label_ids, expected)


def test_it_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 9 could not be predicted: cannot read 7\.png"):
        _write(Streets(9), tmp_path)
    assert len(list(tmp_path.iterdir())) == 8  # complete, and no partial files
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    first, second, *_ = sorted(stamps)
    first.write_bytes(first.read_bytes()[:-30])  # as a copy that broke off
    second.unlink()
    assert _write(Streets(7), tmp_path) == 2
    changed = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {first, second}
    assert _write(Streets(7), tmp_path) == 0


def test_predictions_of_another_checkpoint_are_not_mixed_in(tmp_path):
    _write(Streets(2), tmp_path, "a1")
    with pytest.raises(ValueError, match=r"000019_leftImg8bit\.png exists .*another --output"):
        _write(Streets(2), tmp_path, "b2")


def test_two_images_of_one_name_are_refused(tmp_path):
    source = Streets()
    source.names[3] = source.names[1]
    with pytest.raises(ValueError, match=r"two images are called berlin_000001_000019"):
        _write(source, tmp_path)


def test_label_ids_above_8_bits_are_refused(tmp_path):
    table = create_class_table("mine", [(0, "cat", (9, 0, 0), 300)])
    with pytest.raises(ValueError, match=r"'mine' has the label id 300; label-id files hold"):
        write_label_ids(Streets(), RedPredictor(), table, tmp_path / "out", "a1")
    assert not (tmp_path / "out").exists()


def test_a_part_of_the_test_split_is_refused():
    with pytest.raises(ValueError, match=r"has 1525 images, 5 are here.*; complete it"):
        check_whole(Streets(), CITYSCAPES, "test")
    check_whole(Streets(), CITYSCAPES, "val")
    check_whole(Streets(), CAMVID, "test")


def test_the_fingerprint_is_that_of_the_arrays():
    arrays = {"a": np.arange(3.0), "b": np.ones(2)}
    assert compute_fingerprint(arrays) == compute_fingerprint(dict(arrays))
    assert compute_fingerprint(arrays) != compute_fingerprint({**arrays, "b": np.zeros(2)})


def test_a_split_of_a_runs_data_set(tmp_path):
    """By the command's function, with the run's own data in another place."""
    for folder in ("test", "testannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "camvid/test/a.png")
    labels = Image.fromarray(np.zeros((32, 48), np.uint8))
    labels.save(tmp_path / "camvid/testannot/a.png")
    with small_import.small_backbone():
        workdir = small_import.create_run(tmp_path)
        arguments = (workdir, "test", tmp_path / "out", str(tmp_path / "camvid"))
        with pytest.raises(ValueError, match=r"--ema: .* has no averaged weights"):
            predict_split(*arguments, Options(ema=True))
        (path,) = predict_split(*arguments)
        assert path == tmp_path / "out" / "a.png"
        assert set(np.unique(np.asarray(Image.open(path)))) <= set(CAMVID.label_ids)
        with pytest.raises(
            ValueError, match="not a prediction of this checkpoint with these options"
        ):
            predict_split(*arguments, Options(flip=True))

        labels.save(tmp_path / "camvid/testannot/b.png")
        with pytest.raises(ValueError, match=r"labels have no image .*b\.png"):
            predict_split(*arguments)
