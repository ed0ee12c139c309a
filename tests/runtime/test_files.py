import json

import pytest

from regseg_jax.runtime.files import check_new, replacing, write_json


def test_a_file_is_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "times.json"
    check_new(path)
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    assert [entry.name for entry in path.parent.iterdir()] == ["times.json"]
    with pytest.raises(ValueError, match=r"times\.json exists already; choose another output"):
        check_new(path)


def test_no_path_is_always_new():
    check_new(None)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
