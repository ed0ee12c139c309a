import json

import pytest
from ml_collections import ConfigDict

from regseg_jax.config import (
    check_same_run,
    claim_workdir,
    create_default_config,
    load_config,
    validate_config,
)


@pytest.fixture
def config() -> ConfigDict:
    config = create_default_config()
    config.data.data_dir = "camvid"
    return config


def test_defaults_are_valid(config):
    validate_config(config)
    synthetic = create_default_config()
    synthetic.data.source = "synthetic"
    validate_config(synthetic)


def test_defaults_are_the_papers(config):
    assert config.model == "exp48_decoder26"
    assert tuple(config.augment.crop_size) == (768, 768)
    assert (config.augment.min_shorter_side, config.augment.max_shorter_side) == (400, 1600)
    assert (config.global_batch_size, config.num_epochs) == (8, 1000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (
        0.05,
        0.9,
        1e-4,
    )
    assert (optimizer.warmup_steps, optimizer.warmup_factor, optimizer.power) == (3000, 0.1, 0.9)
    assert (config.loss.threshold, config.loss.min_pixel_share) == (0.3, 1 / 16)


def test_unknown_key_raises(config):
    with pytest.raises(AttributeError, match="learning_rat"):
        config.optimizer.learning_rat = 0.1
    with pytest.raises(KeyError, match="crop"):
        config.update({"crop": (3, 4)})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "exp999_decoder26", "exp999"),
        (
            "precision",
            "fp16",
            r"config\.precision is 'fp16'; use one of float32, bfloat16, float16",
        ),
        ("data.source", "kitti", r"config\.data\.source is 'kitti'; use one of camvid, synthetic"),
        ("loss.name", "dice", r"config\.loss\.name is 'dice'; use one of cross_entropy, boot"),
        (
            "optimizer.schedule",
            "linear",
            r"config\.optimizer\.schedule is 'linear'; use one of poly, cosine, step, exponential",
        ),
        ("global_batch_size", 0, r"config\.global_batch_size is 0; set a whole number"),
        ("num_epochs", -3, r"config\.num_epochs is -3; set a whole number of at least 1"),
        ("log_every_steps", 0, r"config\.log_every_steps is 0"),
        ("checkpoint_every_steps", 0, r"config\.checkpoint_every_steps is 0"),
        ("eval.batch_size", 0, r"config\.eval\.batch_size is 0"),
        ("eval.size_multiple", 0, r"config\.eval\.size_multiple is 0; set a whole number"),
        ("data.tile_size", 0, r"config\.data\.tile_size is 0; set a whole number"),
        ("seed", -1, r"config\.seed is -1; set a whole number of at least 0"),
        ("data.num_workers", -1, r"config\.data\.num_workers is -1"),
        ("eval.num_panels", -1, r"config\.eval\.num_panels is -1"),
        ("eval.num_worst", -1, r"config\.eval\.num_worst is -1"),
        ("eval.image_size", (0, 8), r"config\.eval\.image_size is \[0, 8\]; set \(height"),
        ("eval.scales", ("a",), r"config\.eval\.scales is \('a',\); set positive factors"),
        ("augment.flip_probability", 2.0, r"config\.augment\.flip_probability is 2.0; set a share"),
        ("loss.min_pixel_share", 0.0, r"config\.loss\.min_pixel_share is 0"),
        ("folder.label_stem", "{name}_m", r"config\.folder\.label_stem is '\{name\}_m'; the only"),
        ("folder.image_dir", "{city}", r"config\.folder\.image_dir is '\{city\}'; the only field"),
        ("data.class_uniform_share", 1.5, r"share is 1\.5; set a share from 0 to 1"),
        ("folder.label_format", "png", r"config\.folder\.label_format is 'png'; use one of ids, "),
        ("eval.every_epochs", 0, r"config\.eval\.every_epochs is 0"),
        (
            "augment.crop_size",
            (768,),
            r"config\.augment\.crop_size is \[768\]; set \(height, width",
        ),
        ("augment.crop_size", (), r"config\.augment\.crop_size is \[\]"),
        ("eval.image_size", (1, 2, 3), r"config\.eval\.image_size is \[1, 2, 3\]"),
        ("data.synthetic_size", (64,), r"config\.data\.synthetic_size is \[64\]"),
        (
            "eval.precise_bn_images",
            7,
            r"config\.eval\.precise_bn_images is 7; set 0 .*at least a batch, 8",
        ),
        ("ema_decay", 1.0, r"config\.ema_decay is 1\.0; set 0 for none, or below 1"),
        ("eval.scales", (), r"config\.eval\.scales is \(\); set positive factors"),
        ("eval.scales", (1.0, 0.0), r"config\.eval\.scales is \(1\.0, 0\.0\)"),
        ("search.num_branches", 1, r"config\.search\.num_branches is 1; set .* at least 2"),
        ("search.initial_rate", 0, r"config\.search\.initial_rate is 0; set .* at least 1"),
        ("search.warmup_steps", -1, r"config\.search\.warmup_steps is -1; set a whole"),
        ("search.learning_rate", 0.0, r"config\.search\.learning_rate is 0\.0; set a number"),
        ("search.tap_width", 0.5, r"config\.search\.tap_width is 0\.5; set .* at least 1"),
        ("data.data_dir", "", r"config\.data\.data_dir is empty; add --config\.data\.data_dir"),
    ],
)
def test_bad_value_is_named(config, key, value, message):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        validate_config(config)


def test_config_survives_the_workdir(config, tmp_path):
    config.augment.crop_size = (180, 240)
    config.eval.image_size = (180, 240)
    config.loss.min_pixel_share = 1 / 7
    config.optimizer.learning_rate = 1
    claim_workdir(config, tmp_path / "new" / "run")
    loaded = load_config(tmp_path / "new" / "run")
    assert loaded.to_dict() == config.to_dict()
    assert loaded.augment.crop_size == (180, 240)
    assert loaded.is_locked
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.json"]


def test_same_config_may_claim_again(config, tmp_path):
    claim_workdir(config, tmp_path)
    before = (tmp_path / "config.json").read_text()
    claim_workdir(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer.learning_rate", 0.01), ("augment.crop_size", (512, 1024)), ("seed", 3)],
)
def test_another_config_is_refused(config, tmp_path, key, value):
    claim_workdir(config, tmp_path)
    before = (tmp_path / "config.json").read_text()
    old = json.loads(before)[key]
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match="belongs to a run of another config") as error:
        claim_workdir(config, tmp_path)
    shown = list(value) if isinstance(value, tuple) else value
    assert f"{key} was {old!r} and is {shown!r}" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "config.json").read_text() == before


def test_every_difference_is_named(config, tmp_path):
    claim_workdir(config, tmp_path)
    config.seed, config.model = 1, "exp53_decoder29"
    with pytest.raises(ValueError, match=r"model was .*; seed was|seed was .*; model was"):
        claim_workdir(config, tmp_path)


def test_what_does_not_change_the_result_may_change(config, tmp_path):
    claim_workdir(config, tmp_path)
    changes = {
        "data.data_dir": "elsewhere",
        "data.num_workers": 0,
        "data.check": False,
        "log_every_steps": 7,
        "checkpoint_every_steps": 9,
        "eval.num_panels": 0,
    }
    config.update_from_flattened_dict(changes)
    claim_workdir(config, tmp_path)
    assert load_config(tmp_path).data.data_dir == "elsewhere"  # the newest are kept


def test_check_same_run_with_other_keys_ignored(config):
    other = config.copy_and_resolve_references()
    other.num_epochs = 5
    check_same_run(config, other, "runs/a", ignored=("num_epochs",))
    with pytest.raises(ValueError, match="num_epochs was 5 and is 1000"):
        check_same_run(config, other, "runs/a", ignored=("eval",))


def test_workdir_that_cannot_be_written_is_named(config, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"cannot write to workdir .*file/run: .*choose another"):
        claim_workdir(config, file / "run")


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no .*config\.json"):
        load_config(tmp_path)


def test_config_of_another_version_is_named(config, tmp_path):
    claim_workdir(config, tmp_path)
    path = tmp_path / "config.json"
    flat = json.loads(path.read_text())
    del flat["seed"]
    path.write_text(json.dumps(flat | {"old_key": 1}))
    with pytest.raises(ValueError, match=r"another version: the keys \['old_key', 'seed'\]"):
        load_config(tmp_path)


def test_a_run_remembers_the_rates_of_its_variant_file(config, tmp_path):
    path = tmp_path / "found.json"
    content = {"backbone": "exp48", "decoder": "decoder26", "dilation_rates": 13 * [[1, 2]]}
    path.write_text(json.dumps(content))
    config.model = str(path)
    claim_workdir(config, tmp_path / "run")
    assert load_config(tmp_path / "run").model == f"exp48@{'-'.join(13 * ['1,2'])}_decoder26"
    assert not claim_workdir(config, tmp_path / "run")

    path.write_text(json.dumps(content | {"dilation_rates": 13 * [[1, 3]]}))
    with pytest.raises(ValueError, match=r"model was 'exp48@1,2-.* and is 'exp48@1,3-"):
        claim_workdir(config, tmp_path / "run")


def test_an_alias_and_its_model_are_one_run(config, tmp_path):
    claim_workdir(config, tmp_path)
    config.model = "regseg"
    claim_workdir(config, tmp_path)
