import subprocess
import sys

import pytest

from regseg_jax.config import create_default_config
from regseg_jax.runtime.recipes import find_recipes, load_recipe

# A command that prints what its --config says, where the arguments of the flag are read.
PRINT_CONFIG = """
from absl import app, flags
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.recipes import define_config_flag
define_config_flag("The recipe.")
def main(argv):
    config = flags.FLAGS.config
    print(config.augment.crop_size, config.num_epochs, config.is_locked)
run_command(main, "print_config")
"""


def _print_config(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", PRINT_CONFIG, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(find_recipes()["camvid"].parents[1])},
        capture_output=True,
        text=True,
    )


def test_the_flag_reads_a_name_with_an_argument_from_any_folder(tmp_path):
    result = _print_config(tmp_path, "--config=camvid_scratch:segnet", "--config.num_epochs=7")
    assert result.stdout == "(360, 480) 7 True\n", result.stderr


def test_the_flag_s_error_is_one_line(tmp_path):
    result = _print_config(tmp_path, "--config=cityscape")
    assert result.returncode == 1
    assert result.stderr.startswith("print_config: error:")
    assert "'cityscape' is neither" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_path_and_a_name_give_the_same():
    path = find_recipes()["cityscapes_500"]
    config = load_recipe(f"{path}:exp43_lraspp")
    assert config.model == "exp43_lraspp"
    assert config.to_dict() == load_recipe("cityscapes_500:exp43_lraspp").to_dict()


def test_a_file_of_one_s_own_and_its_neighbour(tmp_path):
    (tmp_path / "own.py").write_text(
        "from regseg_jax.runtime.recipes import load_recipe\n"
        "def get_config():\n"
        "    config = load_recipe('synthetic')\n"
        "    config.num_epochs = 3\n"
        "    return config\n"
    )
    config = load_recipe(str(tmp_path / "own.py"))
    assert config.num_epochs == 3
    assert config.data.source == "synthetic"
    assert create_default_config().num_epochs == 1000


@pytest.mark.parametrize("recipe", ["nothing", "configs/nothing.py", "", ".", "tests"])
def test_what_is_no_recipe_is_an_error_that_lists_the_recipes(recipe):
    with pytest.raises(ValueError, match=r"is neither a Python file nor a recipe.*camvid_scratch"):
        load_recipe(recipe)


def test_a_file_without_a_config_is_an_error(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"empty\.py has no function get_config"):
        load_recipe(str(tmp_path / "empty.py"))


def test_a_wrong_argument_is_the_recipe_s_own_error():
    with pytest.raises(ValueError, match="edition 'half' is none of original, segnet"):
        load_recipe("camvid_scratch:half")
