import contextlib
import json

import jax
import jax.numpy as jnp
import pytest

from regseg_jax.benchmark.convolutions import list_convs
from regseg_jax.config import create_default_config
from regseg_jax.models import variants
from regseg_jax.ops.lowerings import (
    ConvGeometry,
    LoweringTable,
    PassLowerings,
    use_lowerings,
)
from regseg_jax.runs.conv_lowerings import load_conv_lowerings, load_kept_lowerings
from regseg_jax.runs.parts import abstract_train_state
from regseg_jax.runs.run import Run

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
    assert load_kept_lowerings(workdir) == table  # what an evaluation uses


def test_without_one_the_defaults_stand(tmp_path):
    assert load_conv_lowerings("", tmp_path) is load_kept_lowerings(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(ValueError, match=r"cannot read .*table\.json"):
        load_conv_lowerings(str(path), tmp_path / "run")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"table\.json is not a table of lowerings"):
        load_conv_lowerings(str(path), tmp_path / "run")


def test_the_training_step_of_a_run_uses_its_table_also_after_a_restart(
    tmp_path, monkeypatch, small_variant
):
    monkeypatch.setitem(variants.BACKBONES, "small", small_variant.backbone)
    config = create_default_config()
    config.model = "small_decoder12"
    config.data.source, config.data.synthetic_size = "synthetic", (48, 64)
    config.augment.crop_size = (32, 48)
    with contextlib.closing(Run.create(config, tmp_path / "plain")) as run:
        plain = trace(run)
        convs = [conv for conv in list_convs(run.model, (32, 48)) if conv.groups > 1]
    path = tmp_path / "table.json"
    choices = tuple((conv, PassLowerings("conv", "conv", "dense")) for conv in convs)
    path.write_text(json.dumps(LoweringTable("a device", choices).to_json()))
    config.conv_lowerings = str(path)
    steps = []
    for _ in range(2):
        with contextlib.closing(Run.create(config, tmp_path / "tuned")) as run:
            steps.append(trace(run))
        path.unlink(missing_ok=True)  # the run has its copy
    assert steps[0] == steps[1] != plain


def trace(run):
    """The training step in JAX's own language, as training traces it; nothing is computed."""
    batch = {
        "image": jax.ShapeDtypeStruct((8, 48, 64, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8, 48, 64), jnp.uint8),
    }
    state = abstract_train_state(run.model, run.tx)
    with use_lowerings(run.conv_lowerings):
        return str(run.create_train_step().trace(state, batch).jaxpr)
