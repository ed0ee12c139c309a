import dataclasses

import pytest
from ml_collections import ConfigDict

from regseg_jax.config import (
    Config,
    create_default_config,
    flatten_config,
    parse_config,
    unflatten_config,
)


@pytest.fixture
def config() -> ConfigDict:
    return create_default_config()


def test_the_defaults_are_those_of_the_typed_config(config):
    assert parse_config(config) == Config()


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
        ("global_batch_size", 0, r"config\.global_batch_size is 0; set an integer"),
        ("num_epochs", -3, r"config\.num_epochs is -3; set an integer of at least 1"),
        ("log_every_steps", 0, r"config\.log_every_steps is 0"),
        ("checkpoint_every_steps", 0, r"config\.checkpoint_every_steps is 0"),
        ("eval.batch_size", 0, r"config\.eval\.batch_size is 0"),
        ("eval.size_multiple", 0, r"config\.eval\.size_multiple is 0; set an integer"),
        ("data.tile_size", 0, r"config\.data\.tile_size is 0; set an integer"),
        ("seed", -1, r"config\.seed is -1; set an integer of at least 0"),
        ("data.num_workers", -1, r"config\.data\.num_workers is -1"),
        ("eval.num_panels", -1, r"config\.eval\.num_panels is -1"),
        ("eval.num_worst", -1, r"config\.eval\.num_worst is -1"),
        ("eval.image_size", (0, 8), r"config\.eval\.image_size is \(0, 8\); set \(height"),
        ("eval.scales", ("a",), r"config\.eval\.scales is 'a'; set a number above 0"),
        (
            "augment.flip_probability",
            2.0,
            r"config\.augment\.flip_probability is 2.0; set",
        ),
        ("loss.min_pixel_share", 0.0, r"config\.loss\.min_pixel_share is 0"),
        ("folder.label_stem", "{name}_m", r"config\.folder\.label_stem is '\{name\}_m'; the only"),
        ("folder.image_dir", "{city}", r"config\.folder\.image_dir is '\{city\}'; the only field"),
        ("data.class_uniform_share", 1.5, r"share is 1\.5; set a fraction from 0 to 1"),
        ("folder.label_format", "png", r"config\.folder\.label_format is 'png'; use one of ids, "),
        ("eval.every_epochs", -1, r"config\.eval\.every_epochs is -1"),
        (
            "augment.crop_size",
            (768,),
            r"config\.augment\.crop_size is \(768,\); set \(height, width",
        ),
        ("augment.crop_size", (), r"config\.augment\.crop_size is \(\)"),
        ("eval.image_size", (1, 2, 3), r"config\.eval\.image_size is \(1, 2, 3\)"),
        ("data.synthetic_size", (64,), r"config\.data\.synthetic_size is \(64,\)"),
        (
            "eval.precise_bn_images",
            7,
            r"config\.eval\.precise_bn_images is 7; set 0 .*at least a batch, 8",
        ),
        ("ema_decay", 1.0, r"config\.ema_decay is 1\.0; set 0 for none, or below 1"),
        ("eval.scales", (), r"config\.eval\.scales is \(\); set positive factors"),
        ("eval.scales", (1.0, 0.0), r"config\.eval\.scales is 0\.0"),
        ("search.num_branches", 1, r"config\.search\.num_branches is 1; set .* at least 2"),
        ("search.initial_rate", 0, r"config\.search\.initial_rate is 0; set .* at least 1"),
        ("search.warmup_steps", -1, r"config\.search\.warmup_steps is -1; set an integer"),
        ("search.learning_rate", 0.0, r"config\.search\.learning_rate is 0\.0; set a number"),
        ("search.tap_width", 0.5, r"config\.search\.tap_width is 0\.5; set .* at least 1"),
        ("data.synthetic_eval_examples", 0, r"config\.data\.synthetic_eval_examples is 0"),
        ("optimizer.learning_rate", 0.0, r"config\.optimizer\.learning_rate is 0\.0; set a number"),
        ("optimizer.momentum", 1.5, r"config\.optimizer\.momentum is 1\.5; set a fraction"),
        ("optimizer.warmup_steps", -1, r"config\.optimizer\.warmup_steps is -1"),
        (
            "augment.max_shorter_side",
            399,
            r"config\.augment\.max_shorter_side is 399; set an integer of at least 400",
        ),
        (
            "augment.rand_augment_num_ops",
            8,
            r"config\.augment\.rand_augment_num_ops is 8; set 0 .* up to 7",
        ),
    ],
)
def test_bad_value_is_named(config, key, value, message):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        parse_config(config)


def test_a_flat_config_is_the_config_again(config):
    config.augment.crop_size = (180, 240)
    config.folder.classes = ((0, "a", (1, 2, 3), 4),)
    config.loss.min_pixel_share = 1 / 7
    config.optimizer.learning_rate = 1
    typed = parse_config(config)
    assert typed.augment.crop_size == (180, 240)
    assert typed.folder.classes == ((0, "a", (1, 2, 3), 4),)
    assert unflatten_config(flatten_config(typed)) == typed


def test_keys_that_are_missing_take_their_defaults():
    flat = {"seed": 3, "augment.crop_size": [180, 240]}
    expected = dataclasses.replace(
        Config(), seed=3, augment=dataclasses.replace(Config().augment, crop_size=(180, 240))
    )
    assert unflatten_config(flat) == expected


def test_keys_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"there are no config keys data\.speed, old_key"):
        unflatten_config({"old_key": 1, "seed": 2, "data.speed": 3})


@pytest.mark.parametrize("value", ["", "median_frequency", (1.0, 2.5)])
def test_class_weights_are_text_or_numbers(value):
    config = create_default_config()
    config.loss.class_weights = value
    assert parse_config(config).loss.class_weights == value
    assert unflatten_config(flatten_config(parse_config(config))).loss.class_weights == value
