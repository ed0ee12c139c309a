"""Every key of a config with its default. The figures are the paper's for Cityscapes.

A recipe of `configs/` changes some of the keys of `create_default_config()`, and the command line
changes more of them. `parse_config` then makes the typed `Config`; each section checks its own
values and is next to the code that reads it.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict, FieldReference

from regseg_jax.data.augment import AugmentConfig
from regseg_jax.data.dataset import DataConfig, FolderConfig
from regseg_jax.models import variants
from regseg_jax.runtime.checks import check_integer, check_number, check_one_of
from regseg_jax.training.evaluation import EvalConfig
from regseg_jax.training.losses import LossConfig
from regseg_jax.training.optimizer import OptimizerConfig
from regseg_jax.training.rate_search import SearchConfig

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, in full. Sizes are (height, width) in pixels."""

    model: str = "exp48_decoder26"  # BACKBONE_DECODER, an alias, or a variant file
    init_from: str = ""  # weights to start from: a run's folder or a PyTorch file; "": random
    seed: int = 0
    precision: str = "float32"  # float32, bfloat16, or float16 with dynamic loss scaling
    global_batch_size: int = 8  # over all devices of all processes
    accumulation_steps: int = 1  # parts that a device takes its images of a batch in
    batch_norm_per_device: bool = False  # statistics of a device's images, not of the batch's
    num_epochs: int = 1000
    conv_lowerings: str = ""  # a table of benchmark.convolutions --tune; "": each platform's own
    ema_decay: float = 0.0  # above 0: weights averaged over the steps are evaluated as well
    log_every_steps: int = 10
    checkpoint_every_steps: int = 1000  # in addition to the one after each evaluation
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    folder: FolderConfig = dataclasses.field(default_factory=FolderConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        variants.get_variant(self.model)
        check_one_of("precision", self.precision, PRECISIONS)
        check_integer("seed", self.seed, at_least=0)
        for key in (
            *("global_batch_size", "accumulation_steps", "num_epochs"),
            *("log_every_steps", "checkpoint_every_steps"),
        ):
            check_integer(key, getattr(self, key), at_least=1)
        check_number("ema_decay", self.ema_decay, at_least=0)
        if self.ema_decay >= 1:
            raise ValueError(f"config.ema_decay is {self.ema_decay}; set 0 for none, or below 1")
        if 0 != self.eval.precise_bn_images < self.global_batch_size:
            raise ValueError(
                f"config.eval.precise_bn_images is {self.eval.precise_bn_images}; set 0 for none, "
                f"or at least a batch, {self.global_batch_size}"
            )

    @property
    def dtype(self) -> Any:
        """Of the forward and backward passes."""
        return PRECISIONS[self.precision]

    def images_per_batch_norm(self, num_devices: int) -> int:
        """The images that batch norm's statistics are over in training."""
        parts = self.accumulation_steps * (num_devices if self.batch_norm_per_device else 1)
        return self.global_batch_size // parts


def create_default_config() -> ConfigDict:
    """The keys that every recipe starts from; locked: a key that is not here raises."""
    config = ConfigDict(dataclasses.asdict(Config()))
    # Text or numbers: of any type.
    config.loss.class_weights = FieldReference(config.loss.class_weights, field_type=object)
    return config.lock()


def parse_config(config: ConfigDict) -> Config:
    """The typed config.

    Raises:
      ValueError: names the key, its value and the values that are legal.
    """
    return unflatten_config(_flatten(config.to_dict()))


def flatten_config(config: Config) -> dict[str, Any]:
    """Dotted keys to values, with tuples as lists as JSON has them."""
    return _flatten(dataclasses.asdict(config))


def unflatten_config(flat: dict[str, Any]) -> Config:
    """The inverse of `flatten_config`; keys that are missing take their defaults.

    Raises:
      ValueError: names the keys that do not exist, or a value that is not legal.
    """
    if unknown := sorted(flat.keys() - flatten_config(Config()).keys()):
        raise ValueError(f"there are no config keys {', '.join(unknown)}")
    return _build(Config, flat)


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": x for key, x in _flatten(value).items()}
        else:
            flat[name] = _replace_sequences(value, list)
    return flat


def _build(section_class: type, flat: dict[str, Any], prefix: str = "") -> Any:
    values = {}
    for field in dataclasses.fields(section_class):
        key = prefix + field.name
        if dataclasses.is_dataclass(field.type):
            values[field.name] = _build(field.type, flat, f"{key}.")
        elif key in flat:
            values[field.name] = _replace_sequences(flat[key], tuple)
    return section_class(**values)


def _replace_sequences(value: Any, sequence: type) -> Any:
    """The value with tuples and lists, nested ones too, as one kind of sequence."""
    if isinstance(value, tuple | list):
        return sequence(_replace_sequences(x, sequence) for x in value)
    return value
