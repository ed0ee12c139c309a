"""The data set that a config names: its classes, the examples of a split, their order.

What differs between data sets on disk is in `sources`; this is the one place that chooses.
"""

import dataclasses
import os
import pathlib
import typing

from regseg_jax.data import classes
from regseg_jax.data.cache import load_cached
from regseg_jax.data.centroids import load_centroids
from regseg_jax.data.decode import LabelFormat
from regseg_jax.data.sampling import ClassUniformEpochs, Sampler, ShuffledEpochs
from regseg_jax.data.sources.cityscapes import load_cityscapes
from regseg_jax.data.sources.folder import load_folder
from regseg_jax.data.sources.source import Source, load_camvid
from regseg_jax.data.synthetic.scenes import SyntheticScenes
from regseg_jax.runtime.checks import check_fraction, check_integer, check_one_of, check_size

# The class table of each data set; that of "folder" is the config's own.
CLASS_TABLES = {
    "camvid": classes.CAMVID,
    "synthetic": classes.CAMVID,
    "cityscapes": classes.CITYSCAPES,
    "tfds": classes.CITYSCAPES,
    "folder": None,
}

# The splits that are made of others.
_PARTS = {"trainval": {"train", "val"}}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is read: `config.data`."""

    source: str = "camvid"  # camvid, synthetic, cityscapes, tfds or folder
    data_dir: str = ""
    train_split: str = "train"
    eval_split: str = "val"
    num_workers: int = 2  # processes that decode images; 0: a thread of this process
    check: bool = True  # decode every file once before a new run starts
    cache_dir: str = ""  # decoded images are kept there and read again; "": none are
    class_uniform_share: float = 0.0  # fraction of an epoch, see ClassUniformEpochs; 0: none
    tile_size: int = 1024  # centroids are found in squares of this side, in pixels
    centroid_file: str = ""  # where they are kept; "": in the run's folder
    synthetic_size: tuple[int, int] = (120, 160)  # height and width of the drawn scenes
    synthetic_train_examples: int = 2000
    synthetic_eval_examples: int = 100

    def __post_init__(self) -> None:
        check_one_of("data.source", self.source, CLASS_TABLES)
        check_integer("data.num_workers", self.num_workers, at_least=0)
        check_integer("data.tile_size", self.tile_size, at_least=1)
        check_fraction("data.class_uniform_share", self.class_uniform_share)
        check_size("data.synthetic_size", self.synthetic_size)
        for split in ("train", "eval"):
            key = f"synthetic_{split}_examples"
            check_integer(f"data.{key}", getattr(self, key), at_least=1)
            key = f"{split}_split"
            if self.source in ("cityscapes", "tfds") and getattr(self, key) == "test":
                raise ValueError(
                    f"config.data.{key} is 'test', whose labels are not public; use train, val or "
                    "trainval"
                )


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """A data set of one's own, `data.source` "folder": `config.folder`; see docs/own_data.md."""

    image_dir: str = "{split}/images"  # inside data_dir
    label_dir: str = "{split}/labels"
    label_stem: str = "{stem}"  # a label file's name without suffix, from its image's
    label_format: str = "ids"  # ids, train_ids or colors
    classes: tuple = ()  # rows of (training id, name, (red, green, blue), label id)
    ignored_label_ids: tuple = (255,)
    ignored_colors: tuple = ()

    def __post_init__(self) -> None:
        check_one_of("folder.label_format", self.label_format, typing.get_args(LabelFormat))
        for key, field in (("image_dir", "split"), ("label_dir", "split"), ("label_stem", "stem")):
            value = getattr(self, key)
            try:
                value.format(**{field: "x"})
            except (KeyError, ValueError, IndexError):
                raise ValueError(
                    f"config.folder.{key} is {value!r}; the only field that it may have is "
                    f"{{{field}}}"
                ) from None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The data set of a run.

    Attributes:
      config: which, and how it is read.
      folder: the layout of a data set of one's own.
      seed: of the run: drawn scenes and the order of training follow from it.
    """

    config: DataConfig
    folder: FolderConfig
    seed: int

    @property
    def class_table(self) -> classes.ClassTable:
        """Its classes.

        Raises:
          ValueError: if the config's own class table has a gap or a duplicate.
        """
        if self.config.source != "folder":
            return CLASS_TABLES[self.config.source]
        folder = self.folder
        return classes.create_class_table(
            "config.folder.classes", folder.classes, folder.ignored_label_ids, folder.ignored_colors
        )

    def create_source(self, split: str) -> Source:
        """The examples of a split.

        Raises:
          ValueError: if `data_dir` is not set, or files are missing; names them.
        """
        config, class_table = self.config, self.class_table
        if config.source == "synthetic":
            return self._draw_scenes(split)
        if not config.data_dir:
            raise ValueError(
                "config.data.data_dir is empty; add --config.data.data_dir=FOLDER, the folder that "
                f"holds the {config.source} data set"
            )
        match config.source:
            case "camvid":
                return load_camvid(config.data_dir, split, class_table)
            case "cityscapes":
                return load_cityscapes(config.data_dir, split, class_table)
            case "tfds":
                from regseg_jax.data.sources.tfds import TfdsCityscapes  # takes seconds to import

                return TfdsCityscapes(config.data_dir, split, class_table)
        return load_folder(
            config.data_dir,
            split,
            class_table,
            image_dir=self.folder.image_dir,
            label_dir=self.folder.label_dir,
            label_stem=self.folder.label_stem,
            label_format=self.folder.label_format,
        )

    def _draw_scenes(self, split: str) -> SyntheticScenes:
        config = self.config
        sizes = {"train": config.synthetic_train_examples, "val": config.synthetic_eval_examples}
        if split not in sizes:
            raise ValueError(f"the synthetic data set has no split {split!r}; use train or val")
        height, width = config.synthetic_size
        # Each split has seeds of its own, so that no scene is in both.
        return SyntheticScenes(
            num_examples=sizes[split],
            height=height,
            width=width,
            seed=2 * self.seed + (split == "val"),
        )

    def cache_source(self, source: Source, split: str) -> Source:
        """The same examples from the cache of decoded ones, where the config asks for it."""
        if not self.config.cache_dir:
            return source
        # Data sets that use one folder of caches have files of their own.
        name = f"{self.config.source}_{split}_{source.fingerprint().data_set[:12]}"
        return load_cached(self.config.cache_dir, name, source)

    def create_sampler(
        self, source: Source, global_batch_size: int, workdir: str | os.PathLike
    ) -> Sampler:
        """The order of training; finds the classes' centroids where it needs them.

        Raises:
          ValueError: if the split is smaller than a batch, or the file of centroids is of another
            data set.
        """
        if not self.config.class_uniform_share:
            return ShuffledEpochs(len(source), global_batch_size, self.seed)
        centroids = load_centroids(
            self.config.centroid_file or pathlib.Path(workdir) / "centroids.npz",
            source,
            self.class_table.num_classes,
            self.config.tile_size,
        )
        return ClassUniformEpochs(
            num_examples=len(source),
            global_batch_size=global_batch_size,
            seed=self.seed,
            centroids=centroids,
            share=self.config.class_uniform_share,
        )


def name_evaluation(train_split: str, eval_split: str) -> str:
    """The evaluation's name in logs and metrics: `val`, or `val_trained_on`.

    The latter where training saw images of the split, so that its scores say little of others.
    """
    train_parts, eval_parts = (_PARTS.get(split, {split}) for split in (train_split, eval_split))
    return f"{eval_split}_trained_on" if train_parts & eval_parts else eval_split
