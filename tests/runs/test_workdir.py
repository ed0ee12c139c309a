import json
from typing import Any

import pytest

from regseg_jax.config import Config, flatten_config, unflatten_config
from regseg_jax.runs.workdir import check_same_run, claim_workdir, load_config, record_start

CONFIG = Config()


def _with(changes: dict[str, Any]) -> Config:
    return unflatten_config(flatten_config(CONFIG) | changes)


def test_config_survives_the_workdir(tmp_path):
    config = _with(
        {
            "augment.crop_size": (180, 240),
            "eval.image_size": (180, 240),
            "loss.min_pixel_share": 1 / 7,
            "optimizer.learning_rate": 1,
        }
    )
    claim_workdir(config, tmp_path / "new" / "run")
    assert load_config(tmp_path / "new" / "run") == config
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.json"]


def test_same_config_may_claim_again(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    before = (tmp_path / "config.json").read_text()
    claim_workdir(CONFIG, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer.learning_rate", 0.01), ("augment.crop_size", (512, 1024)), ("seed", 3)],
)
def test_another_config_is_refused(tmp_path, key, value):
    claim_workdir(CONFIG, tmp_path)
    before = (tmp_path / "config.json").read_text()
    old = json.loads(before)[key]
    with pytest.raises(ValueError, match="belongs to a run of another config") as error:
        claim_workdir(_with({key: value}), tmp_path)
    shown = list(value) if isinstance(value, tuple) else value
    assert f"{key} was {old!r} and is {shown!r}" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "config.json").read_text() == before


def test_every_difference_is_named(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"model was .*; seed was|seed was .*; model was"):
        claim_workdir(_with({"seed": 1, "model": "exp53_decoder29"}), tmp_path)


def test_what_does_not_change_the_result_may_change(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    changes = {
        "data.data_dir": "elsewhere",
        "data.num_workers": 0,
        "data.check": False,
        "log_every_steps": 7,
        "checkpoint_every_steps": 9,
        "eval.num_panels": 0,
        "eval.batch_size": 2,
    }
    claim_workdir(_with(changes), tmp_path)
    assert load_config(tmp_path).data.data_dir == "elsewhere"  # the newest are kept


def test_other_images_behind_batch_norm_are_said(tmp_path, capsys):
    """8 images, on the 8 devices of the tests."""
    per_device = {"batch_norm_per_device": True, "global_batch_size": 32}
    for folder, config, changes, now in (
        ("a", CONFIG, {"accumulation_steps": 4}, "8 images and are over 2"),
        ("b", _with(per_device), per_device | {"accumulation_steps": 2}, "4 images and are over 2"),
    ):
        for start in (config, config, _with(changes)):
            assert not capsys.readouterr().err
            claim_workdir(start, tmp_path / folder)
            record_start(tmp_path / folder)
        assert f"warning: batch norm's statistics were over {now} from" in capsys.readouterr().err
    assert _with(per_device).images_per_batch_norm(num_devices=2) == 16


def test_check_same_run_with_other_keys_ignored():
    other = _with({"num_epochs": 5})
    check_same_run(CONFIG, other, "runs/a", ignored=("num_epochs",))
    with pytest.raises(ValueError, match="num_epochs was 5 and is 1000"):
        check_same_run(CONFIG, other, "runs/a", ignored=("eval",))


def test_workdir_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"cannot write to workdir .*file/run: .*choose another"):
        claim_workdir(CONFIG, file / "run")


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no .*config\.json"):
        load_config(tmp_path)


def test_a_run_of_an_older_version_opens_with_defaults_for_newer_keys(tmp_path):
    claim_workdir(_with({"num_epochs": 7, "seed": 5}), tmp_path)
    path = tmp_path / "config.json"
    flat = json.loads(path.read_text())
    del flat["seed"], flat["eval.scales"]
    path.write_text(json.dumps(flat))
    assert load_config(tmp_path) == _with({"num_epochs": 7, "seed": 0})
    claim_workdir(_with({"num_epochs": 7}), tmp_path)


def test_keys_that_no_longer_exist_are_named_with_the_file(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data.old": 1}))
    with pytest.raises(ValueError, match=r"config\.json cannot be read .* keys data\.old"):
        load_config(tmp_path)


def test_every_start_is_recorded(tmp_path):
    for _ in range(2):
        record_start(tmp_path)
    first, second = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert first.keys() == second.keys() >= {"versions", "processor", "devices"}


def test_the_start_that_an_older_version_recorded_is_kept(tmp_path):
    (tmp_path / "environment.json").write_text('{"processor": "old"}')
    record_start(tmp_path)
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert starts[0] == {"processor": "old"}
    assert len(starts) == 2


def test_a_run_remembers_the_rates_of_its_variant_file(tmp_path):
    path = tmp_path / "found.json"
    content = {"backbone": "exp48", "decoder": "decoder26", "dilation_rates": 13 * [[1, 2]]}
    path.write_text(json.dumps(content))
    config = _with({"model": str(path)})
    claim_workdir(config, tmp_path / "run")
    assert load_config(tmp_path / "run").model == f"exp48@{'-'.join(13 * ['1,2'])}_decoder26"
    claim_workdir(config, tmp_path / "run")

    path.write_text(json.dumps(content | {"dilation_rates": 13 * [[1, 3]]}))
    with pytest.raises(ValueError, match=r"model was 'exp48@1,2-.* and is 'exp48@1,3-"):
        claim_workdir(config, tmp_path / "run")


def test_an_alias_and_its_model_are_one_run(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    claim_workdir(_with({"model": "regseg"}), tmp_path)
