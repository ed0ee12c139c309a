"""What a config may say: every key with its default, and the checks on their values."""

import json
import os
import pathlib
import typing

import jax.numpy as jnp
from ml_collections import ConfigDict

from regseg_jax.data.decode import LabelFormat
from regseg_jax.models import variants
from regseg_jax.runtime.files import write_json
from regseg_jax.training.optimizer import DECAYS

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
SOURCES = ("camvid", "synthetic", "cityscapes", "tfds", "folder")
LOSSES = ("cross_entropy", "bootstrapped_cross_entropy")

# What may change between the starts of one run, for it does not change the result.
MAY_CHANGE = ("data.data_dir", "data.num_workers", "data.check", "log_every_steps")
MAY_CHANGE += ("data.centroid_file", "data.cache_dir")
MAY_CHANGE += ("checkpoint_every_steps", "eval.num_panels", "eval.num_worst")


# Whole numbers of at least 1, and of at least 0.
_COUNTS = ("global_batch_size", "data.tile_size", "num_epochs", "log_every_steps")
_COUNTS += ("checkpoint_every_steps", "eval.batch_size", "eval.size_multiple", "eval.every_epochs")
_NUMBERS = ("seed", "data.num_workers", "eval.num_panels", "eval.num_worst")
_NUMBERS += ("augment.rand_augment_num_ops", "optimizer.warmup_steps")


def create_default_config() -> ConfigDict:
    """The keys that every recipe in `configs/` starts from; the figures are the paper's.

    Sizes are (height, width) in pixels. The config is locked: a key that is not here raises.
    """
    config = ConfigDict()
    config.model = "exp48_decoder26"
    config.init_from = ""  # weights to start from: a run's folder or a PyTorch file; "": random
    config.seed = 0
    config.precision = "float32"  # float32, bfloat16, or float16 with dynamic loss scaling
    config.global_batch_size = 8  # over all devices of all processes
    config.batch_norm_per_device = False  # statistics of a device's images, not of the batch
    config.num_epochs = 1000
    config.ema_decay = 0.0  # above 0: weights averaged over the steps are evaluated as well
    config.log_every_steps = 10
    config.checkpoint_every_steps = 1000  # beside the one after each evaluation

    config.data = ConfigDict()
    config.data.source = "camvid"  # one of SOURCES
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.num_workers = 2  # processes that decode images; 0: a thread of this process
    config.data.check = True  # decode every file once before a new run starts
    config.data.cache_dir = ""  # decoded images are kept there and read again; "": none are
    config.data.class_uniform_share = 0.0  # of an epoch, see ClassUniformEpochs; 0: none
    config.data.tile_size = 1024  # centroids are found in squares of this side
    config.data.centroid_file = ""  # where they are kept; "": in the run's folder
    config.data.synthetic_size = (120, 160)
    config.data.synthetic_train_examples = 2000
    config.data.synthetic_eval_examples = 100

    # A data set of one's own: data.source "folder"; see docs/own_data.md.
    config.folder = ConfigDict()
    config.folder.image_dir = "{split}/images"  # inside data_dir
    config.folder.label_dir = "{split}/labels"
    config.folder.label_stem = "{stem}"  # a label file's name without suffix, from its image's
    config.folder.label_format = "ids"  # ids, train_ids or colors
    config.folder.classes = ()  # rows of (training id, name, (red, green, blue), label id)
    config.folder.ignored_label_ids = (255,)
    config.folder.ignored_colors = ()

    config.augment = ConfigDict()
    config.augment.crop_size = (768, 768)
    config.augment.min_shorter_side = 400
    config.augment.max_shorter_side = 1600
    config.augment.flip_probability = 0.5
    config.augment.rand_augment_num_ops = 0  # operations an image; the paper's Cityscapes runs: 2
    config.augment.rand_augment_magnitude = 0.2  # in [0, 1]

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule = "poly"  # poly, cosine, step or exponential
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
    config.eval.size_multiple = 1  # where sizes differ, pad to multiples of it: fewer to compile
    config.eval.batch_size = 8  # over all devices
    config.eval.every_epochs = 10
    config.eval.num_panels = 4  # pictures drawn at each evaluation
    config.eval.num_worst = 0  # images of the lowest mean IoU that are listed and drawn
    # Above 0: the running statistics become the mean over so many training images before each
    # evaluation (the paper: 600).
    config.eval.precise_bn_images = 0
    config.eval.flip = False  # whether probabilities are averaged with the mirrored image's
    config.eval.scales = (1.0,)  # and over these sizes of the image
    return config.lock()


def validate_config(config: ConfigDict, *, with_data: bool = True) -> None:
    """Checks the values that would otherwise fail late.

    Args:
      config: of a run.
      with_data: whether it has to say where the data are.

    Raises:
      ValueError: names the key, its value and the values that are legal.
    """
    variants.get_variant(config.model)
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("data.source", config.data.source, SOURCES)
    _one_of("loss.name", config.loss.name, LOSSES)
    _one_of("optimizer.schedule", config.optimizer.schedule, DECAYS)
    flat = _flatten(config)
    for keys, least in ((_COUNTS, 1), (_NUMBERS, 0)):
        for key in keys:
            if not isinstance(flat[key], int) or flat[key] < least:
                raise ValueError(
                    f"config.{key} is {flat[key]!r}; set a whole number of at least {least}"
                )
    _validate_search(config)
    for key in ("augment.crop_size", "eval.image_size", "data.synthetic_size"):
        size = flat[key]
        is_size = len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
        if not is_size and not (key == "eval.image_size" and len(size) == 0):
            raise ValueError(f"config.{key} is {size!r}; set (height, width), in pixels")
    for key in ("data.class_uniform_share", "augment.flip_probability", "loss.min_pixel_share"):
        if not 0 <= flat[key] <= 1:
            raise ValueError(f"config.{key} is {flat[key]!r}; set a share from 0 to 1")
    if config.loss.min_pixel_share == 0:
        raise ValueError("config.loss.min_pixel_share is 0; set the share of pixels that count")
    _validate_folder(config)
    if config.data.source in ("cityscapes", "tfds"):
        for key in ("data.train_split", "data.eval_split"):
            if _flatten(config)[key] == "test":
                raise ValueError(
                    f"config.{key} is 'test', whose labels are not public; use train, val or "
                    "trainval"
                )
    if 0 != config.eval.precise_bn_images < config.global_batch_size:
        raise ValueError(
            f"config.eval.precise_bn_images is {config.eval.precise_bn_images}; set 0 for none, or "
            f"at least a batch, {config.global_batch_size}"
        )
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"config.ema_decay is {config.ema_decay}; set 0 for none, or below 1")
    scales = config.eval.scales
    if not scales or not all(isinstance(x, int | float) and x > 0 for x in scales):
        raise ValueError(
            f"config.eval.scales is {config.eval.scales}; set positive factors, (1.0,) for none"
        )
    if with_data and config.data.source != "synthetic" and not config.data.data_dir:
        raise ValueError(
            "config.data.data_dir is empty; add --config.data.data_dir=FOLDER, the folder that "
            f"holds the {config.data.source} data set"
        )


def _validate_folder(config: ConfigDict) -> None:
    folder = config.folder
    _one_of("folder.label_format", folder.label_format, typing.get_args(LabelFormat))
    for key, field in (("image_dir", "split"), ("label_dir", "split"), ("label_stem", "stem")):
        try:
            folder[key].format(**{field: "x"})
        except (KeyError, ValueError, IndexError):
            raise ValueError(
                f"config.folder.{key} is {folder[key]!r}; the only field that it may have is "
                f"{{{field}}}"
            ) from None


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
            flat[key] = _to_lists(value)
    return flat


def _to_lists(value: object) -> object:
    return [_to_lists(x) for x in value] if isinstance(value, tuple | list) else value


def _describe(config: ConfigDict) -> dict[str, object]:
    """`_flatten`, but the model by the name that says all of it: no alias, no path of a file."""
    return _flatten(config) | {"model": variants.get_variant(config.model).name}


def claim_workdir(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Makes workdir this config's: writes `config.json`, or compares with the one that is there.

    Raises:
      ValueError: if the folder cannot be written to, or belongs to a run of another config; names
        each key that differs.
    """
    path = pathlib.Path(workdir) / "config.json"
    if path.exists():
        check_same_run(config, load_config(workdir), workdir)
    try:
        write_json(path, _describe(config))
    except OSError as error:
        raise ValueError(f"cannot write to workdir {workdir}: {error}; choose another") from None


def check_same_run(
    config: ConfigDict,
    saved: ConfigDict,
    workdir: str | os.PathLike,
    ignored: tuple[str, ...] = MAY_CHANGE,
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
