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
from regseg_jax.data.labels import LabelFormat
from regseg_jax.data.notices import say_once
from regseg_jax.data.sampling import ClassUniformEpochs, Sampler, ShuffledEpochs
from regseg_jax.data.sources import holdout
from regseg_jax.data.sources.cityscapes import load_cityscapes
from regseg_jax.data.sources.folder import load_folder
from regseg_jax.data.sources.locations import find_data_dir
from regseg_jax.data.sources.packed import has_packed_split, is_packed, load_packed
from regseg_jax.data.sources.source import FileSource, Source, load_camvid
from regseg_jax.data.synthetic.scenes import SyntheticScenes
from regseg_jax.runtime.checks import check_fraction, check_integer, check_one_of, check_size
from regseg_jax.runtime.packages import require_packages

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
    """The user's own data set, `data.source` "folder": `config.folder`; see docs/own_data.md."""

    image_dir: str = "{split}/images"  # inside data_dir
    label_dir: str = "{split}/labels"
    image_stem: str = "{stem}"  # an image file's name without suffix; {stem}: its label's too
    label_stem: str = "{stem}"  # a label file's name without suffix
    label_format: str = "ids"  # ids, train_ids or colors
    classes: tuple = ()  # rows of (training id, name, (red, green, blue), label id)
    ignored_label_ids: tuple = (255,)
    ignored_colors: tuple = ()
    val_fraction: float = 0.0  # of the training images, held back as data.eval_split; 0: none

    def __post_init__(self) -> None:
        check_one_of("folder.label_format", self.label_format, typing.get_args(LabelFormat))
        check_fraction("folder.val_fraction", self.val_fraction)
        for key in ("image_dir", "label_dir", "image_stem", "label_stem"):
            value, field = getattr(self, key), "split" if key.endswith("dir") else "stem"
            try:
                value.format(**{field: "x"})
            except (KeyError, ValueError, IndexError):
                raise ValueError(
                    f"config.folder.{key} is {value!r}; the only field that it may have is "
                    f"{{{field}}}"
                ) from None
            if field == "stem" and value.count("{stem}") != 1:
                raise ValueError(f"config.folder.{key} is {value!r}; it must have {{stem}} once")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The data set of a run.

    Attributes:
      config: which, and how it is read.
      folder: the layout of the user's own data set.
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

    def create_source(self, split: str, workdir: str | os.PathLike | None = None) -> Source:
        """The examples of a split.

        Args:
          split: its name.
          workdir: of the run, which may have written down the images that are held back.

        Raises:
          ValueError: if there is no data set, or files are missing; names them, or says how to get
            it.
        """
        if self.config.source == "synthetic":
            return self._draw_scenes(split)
        if self.config.source == "folder":
            return self._hold_out(split, workdir)
        return self.open_split(split)

    def open_split(self, split: str) -> Source:
        """The examples of a split as they are on disk, with none held back.

        Raises:
          ValueError: as `create_source`.
        """
        config, class_table = self.config, self.class_table
        data_dir = find_data_dir(config.source, config.data_dir)
        if is_packed(data_dir):
            return load_packed(data_dir, split, class_table, config.source)
        match config.source:
            case "camvid":
                return load_camvid(data_dir, split, class_table)
            case "cityscapes":
                return load_cityscapes(data_dir, split, class_table)
            case "tfds":
                require_packages(
                    "config.data.source 'tfds'",
                    ("tensorflow_datasets",),
                    "tensorflow-datasets importlib_resources (regseg_jax's extra [tfds])",
                )
                from regseg_jax.data.sources.tfds import TfdsCityscapes  # takes seconds to import

                return TfdsCityscapes(data_dir, split, class_table)
        return load_folder(
            data_dir,
            split,
            class_table,
            image_dir=self.folder.image_dir,
            label_dir=self.folder.label_dir,
            image_stem=self.folder.image_stem,
            label_stem=self.folder.label_stem,
            label_format=self.folder.label_format,
        )

    def list_stored_splits(self) -> tuple[str, ...]:
        """The splits on disk that training and evaluation read."""
        splits = []
        for split in (self.config.train_split, self.config.eval_split):
            if self.config.source != "folder":
                splits += sorted(_PARTS.get(split, {split}))
            elif not self.folder.val_fraction or self._has_split(split):
                splits.append(split)
            else:
                splits.append(self.config.train_split)
        return tuple(dict.fromkeys(splits))

    def _hold_out(self, split: str, workdir: str | os.PathLike | None) -> FileSource:
        data, folder = self.config, self.folder
        if "{split}" not in folder.image_dir and not folder.val_fraction:
            say_once(
                "config.folder.image_dir has no {split}, so that every split is the same images; "
                "config.folder.val_fraction holds some back",
                folder.image_dir,
            )
        splits = (data.train_split, data.eval_split)
        if not folder.val_fraction or split not in splits:
            return self.open_split(split)
        if self._has_split(data.eval_split):
            if split == data.eval_split:
                return self.open_split(split)
            raise ValueError(
                f"config.folder.val_fraction is {folder.val_fraction}, but there is a split "
                f"{data.eval_split!r} already; set val_fraction to 0, or config.data.eval_split to "
                "a new name"
            )
        if data.train_split == data.eval_split:
            raise ValueError(
                f"config.folder.val_fraction is {folder.val_fraction}, but train_split and "
                f"eval_split are both {data.train_split!r}; set config.data.eval_split=val"
            )
        source = self.open_split(data.train_split)
        train, val = holdout.hold_out(source, self._choose_val_names(source, workdir))
        return train if split == data.train_split else val

    def _has_split(self, split: str) -> bool:
        """Whether a split other than the training split has images of its own."""
        image_dir, data_dir = self.folder.image_dir, self.config.data_dir
        if is_packed(data_dir):
            return split != self.config.train_split and has_packed_split(data_dir, split)
        path = pathlib.Path(data_dir) / image_dir.format(split=split)
        return "{split}" in image_dir and split != self.config.train_split and path.is_dir()

    def _choose_val_names(
        self, source: FileSource, workdir: str | os.PathLike | None
    ) -> tuple[str, ...]:
        names = holdout.load_names(pathlib.Path(workdir)) if workdir else None
        return names or holdout.choose_names(source, self.folder.val_fraction, self.seed)

    def keep_val_split(self, workdir: str | os.PathLike) -> None:
        """Writes `val_split.json`, the names of the images that are held back, if any are."""
        if self.config.source == "folder" and self.folder.val_fraction:
            source = self.open_split(self.config.train_split)
            names = self._choose_val_names(source, workdir)
            holdout.save_names(pathlib.Path(workdir), names, self.folder.val_fraction, self.seed)

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
        """The same examples from the cache of decoded ones, if the config asks for it."""
        if not self.config.cache_dir:
            return source
        # Data sets that use one folder of caches have files of their own.
        name = f"{self.config.source}_{split}_{source.fingerprint().data_set[:12]}"
        return load_cached(self.config.cache_dir, name, source)

    def create_sampler(
        self, source: Source, global_batch_size: int, workdir: str | os.PathLike
    ) -> Sampler:
        """The order of training; finds the classes' centroids if it needs them.

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
            class_uniform_fraction=self.config.class_uniform_share,
        )


def name_evaluation(train_split: str, eval_split: str) -> str:
    """The evaluation's name in logs and metrics: `val`, or `val_trained_on`.

    The latter where training saw images of the split, so that its scores say little about others.
    """
    train_parts, eval_parts = (_PARTS.get(split, {split}) for split in (train_split, eval_split))
    return f"{eval_split}_trained_on" if train_parts & eval_parts else eval_split
