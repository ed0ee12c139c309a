import json

import pytest

from regseg_jax.ops.lowerings import ConvGeometry, LoweringTable, PassLowerings
from regseg_jax.runs.conv_lowerings import load_conv_lowerings

GEOMETRY = ConvGeometry(3, 1, 2, groups=2, in_channels=32, features=32, height=6, width=8)


def write_table(path, name):
    table = LoweringTable("a device", ((GEOMETRY, PassLowerings(name, name, name)),))
    path.write_text(json.dumps({**table.to_json(), "date": "today"}))
    return table


def test_a_run_keeps_its_table(tmp_path):
    path, workdir = tmp_path / "table.json", tmp_path / "run"
    table = write_table(path, "rows")
    assert load_conv_lowerings(str(path), workdir) == table
    assert load_conv_lowerings(str(path), workdir) == table
    path.unlink()
    assert load_conv_lowerings(str(path), workdir) == table
    write_table(path, "dense")
    with pytest.raises(ValueError, match="not the table that the run began with"):
        load_conv_lowerings(str(path), workdir)


def test_without_one_the_defaults_stand(tmp_path):
    assert load_conv_lowerings("", tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(ValueError, match=r"cannot read .*table\.json"):
        load_conv_lowerings(str(path), tmp_path / "run")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"table\.json is no table of lowerings"):
        load_conv_lowerings(str(path), tmp_path / "run")
