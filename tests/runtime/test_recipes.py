import os
import pathlib

import pytest

from regseg_jax.runtime.recipes import default_workdir, find_config


def test_a_path_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    assert find_config("mine.py") == "mine.py"
    assert find_config("mine.py:large") == "mine.py:large"
    beside_the_package = pathlib.Path(find_config("cityscapes"))
    assert beside_the_package.parts[-2:] == ("configs", "cityscapes.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "cityscapes.py").write_text("")
    assert find_config("cityscapes") == os.path.join("configs", "cityscapes.py")


@pytest.mark.parametrize("value", ["configs/cityscape.py", "notes.txt", "."])
def test_another_path_lists_the_recipes(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"is no config file; use one of .*camvid\.py, .*folder"):
        find_config(value)


def test_the_run_is_called_as_the_recipe():
    expected = os.path.join("runs", "cityscapes_500")
    assert default_workdir("configs/cityscapes_500.py") == expected
    assert default_workdir("/elsewhere/configs/cityscapes_500.py:large") == expected
