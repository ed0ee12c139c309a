"""What a config may say: every key with its default, and the checks on their values."""

import json
import os
import pathlib
import tempfile

import jax.numpy as jnp
from ml_collections import ConfigDict

from regseg_jax.models import variants

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
SOURCES = ("camvid", "synthetic")
LOSSES = ("cross_entropy", "bootstrapped_cross_entropy")

# What may change between the starts of one run, for it does not change the result.
_MAY_CHANGE = ("data.data_dir", "data.num_workers", "data.check", "log_every_steps")
_MAY_CHANGE += ("checkpoint_every_steps", "eval.num_panels")


def create_default_config() -> ConfigDict:
    """The keys that every recipe in `configs/` starts from; the figures are the paper's.

    Sizes are (height, width) in pixels. The config is locked: a key that is not here raises.
    """
    config = ConfigDict()
    config.model = "exp48_decoder26"
    config.seed = 0
    config.precision = "float32"  # float32, bfloat16, or float16 with dynamic loss scaling
    config.global_batch_size = 8  # over all devices of all processes
    config.num_epochs = 1000
    config.log_every_steps = 10
    config.checkpoint_every_steps = 1000  # beside the one after each evaluation

    config.data = ConfigDict()
    config.data.source = "camvid"  # camvid or synthetic
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.num_workers = 2  # processes that decode images; 0: a thread of this process
    config.data.check = True  # decode every file once before a new run starts
    config.data.synthetic_size = (120, 160)
    config.data.synthetic_train_examples = 2000
    config.data.synthetic_eval_examples = 100

    config.augment = ConfigDict()
    config.augment.crop_size = (768, 768)
    config.augment.min_shorter_side = 400
    config.augment.max_shorter_side = 1600
    config.augment.flip_probability = 0.5

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 3000
    config.optimizer.warmup_factor = 0.1
    config.optimizer.power = 0.9

    config.loss = ConfigDict()
    config.loss.name = "cross_entropy"
    config.loss.threshold = 0.3  # bootstrapped: pixel losses above it count
    config.loss.min_pixel_share = 1 / 16  # bootstrapped: of the batch's pixels, at least

    config.search = ConfigDict()
    config.search.enabled = False  # learn the rates of the model's blocks at 1/16
    config.search.num_branches = 2  # rates a block
    config.search.initial_rate = 1  # of every branch, under the bound
    config.search.learning_rate = 0.05  # of the rates: about what one moves in a step, at most
    config.search.warmup_steps = 300  # before the rates move
    config.search.tap_width = 4.0  # of the taps at first, in pixels at 1/16; it narrows to 1

    config.eval = ConfigDict()
    config.eval.image_size = ()  # images are resized to it; (): left as they are
    config.eval.batch_size = 8  # over all devices
    config.eval.every_epochs = 10
    config.eval.num_panels = 4  # pictures drawn at each evaluation
    return config.lock()


def validate_config(config: ConfigDict) -> None:
    """Checks the values that would otherwise fail late.

    Raises:
      ValueError: names the key, its value and the values that are legal.
    """
    variants.get_variant(config.model)
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("data.source", config.data.source, SOURCES)
    _one_of("loss.name", config.loss.name, LOSSES)
    for key in (
        "global_batch_size",
        "num_epochs",
        "log_every_steps",
        "checkpoint_every_steps",
        "eval.batch_size",
        "eval.every_epochs",
    ):
        value = _flatten(config)[key]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"config.{key} is {value!r}; set a whole number of at least 1")
    _validate_search(config)
    for key in ("augment.crop_size", "eval.image_size", "data.synthetic_size"):
        size = _flatten(config)[key]
        if len(size) != 2 and not (key == "eval.image_size" and len(size) == 0):
            raise ValueError(f"config.{key} is {size!r}; set (height, width)")
    if config.data.source != "synthetic" and not config.data.data_dir:
        raise ValueError(
            "config.data.data_dir is empty; add --config.data.data_dir=FOLDER, the folder that "
            f"holds the {config.data.source} data set"
        )


def _validate_search(config: ConfigDict) -> None:
    search = config.search
    for key, least in (("num_branches", 2), ("initial_rate", 1), ("warmup_steps", 0)):
        if not isinstance(search[key], int) or search[key] < least:
            raise ValueError(
                f"config.search.{key} is {search[key]!r}; set a whole number of at least {least}"
            )
    if not 0 < search.learning_rate < float("inf"):
        raise ValueError(
            f"config.search.learning_rate is {search.learning_rate!r}; set a number above 0"
        )
    if not 1 <= search.tap_width < float("inf"):
        raise ValueError(
            f"config.search.tap_width is {search.tap_width!r}; set a number of at least 1"
        )


def _one_of(key: str, value: str, legal: object) -> None:
    if value not in legal:
        raise ValueError(f"config.{key} is {value!r}; use one of {', '.join(legal)}")


def _flatten(config: ConfigDict) -> dict[str, object]:
    """Dotted keys to values, with tuples as lists as JSON has them."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{k}": v for k, v in _flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def _describe(config: ConfigDict) -> dict[str, object]:
    """`_flatten`, but the model by the name that says all of it: no alias, no path of a file."""
    return _flatten(config) | {"model": variants.get_variant(config.model).name}


def claim_workdir(config: ConfigDict, workdir: str | os.PathLike) -> bool:
    """Makes workdir this config's: writes `config.json`, or compares with the one that is there.

    Returns:
      Whether the run is new.

    Raises:
      ValueError: if the folder cannot be written to, or belongs to a run of another config; names
        each key that differs.
    """
    path = pathlib.Path(workdir) / "config.json"
    is_new = not path.exists()
    if not is_new:
        check_same_run(config, load_config(workdir), workdir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(_describe(config), file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        raise ValueError(f"cannot write to workdir {workdir}: {error}; choose another") from None
    return is_new


def check_same_run(
    config: ConfigDict,
    saved: ConfigDict,
    workdir: str | os.PathLike,
    ignored: tuple[str, ...] = _MAY_CHANGE,
) -> None:
    """Raises ValueError where two configs differ in a key that starts with none of `ignored`."""
    old, new = _describe(saved), _describe(config)
    differences = [
        f"{key} was {old[key]!r} and is {new[key]!r}"
        for key in new
        if old[key] != new[key] and not key.startswith(ignored)
    ]
    if differences:
        raise ValueError(
            f"workdir {workdir} belongs to a run of another config: {'; '.join(differences)}. "
            "Choose another workdir, or the config of that run"
        )


def load_config(workdir: str | os.PathLike) -> ConfigDict:
    """Reads the config of a run.

    Raises:
      ValueError: if there is none or it is of another version of this project.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: there is no {path}; pass the --workdir of one")
    flat = json.loads(path.read_text())
    config = create_default_config()
    if unknown := sorted(flat.keys() ^ _flatten(config).keys()):
        raise ValueError(f"{path} is of another version: the keys {unknown} are not in both")
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()}
    )
    return config
