import re

import pytest
from PIL import Image

from regseg_jax.predict import find_images, predict


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.jpg", "b_overlay.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def test_folders_are_expanded_and_other_files_left_out(folder):
    assert [p.name for p in find_images([folder])] == ["a.png", "b.jpg", "b_overlay.png"]
    assert find_images([folder / "a.png"]) == [folder / "a.png"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no image was given"),
        (["nowhere"], "there is no"),
        (["empty"], "holds no image"),
        (["a.png", "other/a.png"], "would both write a.png"),
    ],
)
def test_paths_that_do_not_do(folder, paths, message):
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "other" / "a.png")
    with pytest.raises(ValueError, match=message):
        find_images([folder / path for path in paths])


@pytest.mark.parametrize(
    ("paths", "output"), [(["a.png"], "."), (["a.png", "b.jpg", "b_overlay.png"], "out")]
)
def test_no_image_and_no_prediction_is_replaced(folder, paths, output):
    before = (folder / "a.png").read_bytes()
    message = f"would replace another image or its predictions in {re.escape(str(folder))}"
    with pytest.raises(ValueError, match=message):
        predict(folder / "no run", [folder / path for path in paths], folder / output)
    assert (folder / "a.png").read_bytes() == before
