import os
import pathlib
import subprocess
import sys

import pytest

from regseg_jax.runtime.recipes import default_workdir, find_config, load_recipe

ROOT = pathlib.Path(__file__).parents[2]

PRINT_CONFIG = """
from absl import flags
from ml_collections import config_flags
from regseg_jax.runtime.command import run_command
config_flags.DEFINE_config_file("config")
def main(argv):
    print(flags.FLAGS.config.augment.crop_size, flags.FLAGS.config.num_epochs)
run_command(main, "print_config")
"""


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
    with pytest.raises(ValueError, match=r"is neither a config file nor .* camvid, .* folder,"):
        find_config(value)


def test_the_run_is_called_as_the_recipe():
    expected = os.path.join("runs", "cityscapes_500")
    assert default_workdir("configs/cityscapes_500.py") == expected
    assert default_workdir("/elsewhere/configs/cityscapes_500.py:large") == expected


def test_the_flag_takes_a_name_with_an_argument_in_any_folder(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-c", PRINT_CONFIG),
            *("--config=camvid_scratch:segnet", "--config.num_epochs=7"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "(360, 480) 7\n", result.stderr


def test_a_recipe_starts_from_another_one(tmp_path):
    (tmp_path / "own.py").write_text(
        "from regseg_jax.runtime.recipes import load_recipe\n"
        "def get_config(num_epochs='3'):\n"
        "    config = load_recipe('synthetic')\n"
        "    config.num_epochs = int(num_epochs)\n"
        "    return config\n"
    )
    config = load_recipe(f"{tmp_path / 'own.py'}:4")
    assert config.num_epochs == 4
    assert config.data.source == "synthetic"
    assert load_recipe(str(tmp_path / "own.py")).num_epochs == 3


def test_an_argument_that_a_recipe_refuses():
    with pytest.raises(ValueError, match="edition 'half' is none of original, segnet"):
        load_recipe("camvid_scratch:half")
