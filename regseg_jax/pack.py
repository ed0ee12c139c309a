"""Packs a data set into a few large files, for file systems that are slow with many small ones.

    python -m regseg_jax.pack --config=configs/cityscapes.py --output=PACKED

Image and label files stay as they are, byte for byte. To train from them:

    python -m regseg_jax.main --config=configs/cityscapes.py --config.data.data_dir=PACKED
"""

from absl import flags
from ml_collections import config_flags

from regseg_jax.config import parse_config
from regseg_jax.data.pack import pack_sources
from regseg_jax.data.sources.source import FolderSource
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.files import check_new


def main(argv: list[str]) -> None:
    """Packs the splits that the flags name."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    values = flags.FLAGS
    check_new(values.output)
    config = parse_config(values.config)
    if config.data.source not in ("camvid", "cityscapes", "folder"):
        raise ValueError(
            f"config.data.source is {config.data.source!r}, which is not a folder of image files; "
            "use camvid, cityscapes or folder"
        )
    dataset = create_dataset(config)
    splits = values.splits or dataset.list_stored_splits()
    sources = {split: dataset.open_split(split) for split in splits}
    if not all(isinstance(source, FolderSource) for source in sources.values()):
        raise ValueError(f"{config.data.data_dir} is packed already")
    shard_bytes = int(1e6 * values.shard_megabytes)
    pack_sources(sources, config.data.source, values.output, shard_bytes)
    counts = ", ".join(f"{split}: {len(source)} images" for split, source in sources.items())
    print(f"wrote {values.output} ({counts})")


def run() -> None:
    """Defines the flags and runs the command."""
    config_flags.DEFINE_config_file("config", None, "The recipe: a name or a Python file.")
    flags.DEFINE_string("output", None, "The folder to write; it must not exist.")
    flags.DEFINE_list(
        "splits", None, "With commas between; else those that the recipe trains and scores on."
    )
    flags.DEFINE_integer("shard_megabytes", 256, "Of a file, about.", lower_bound=1)
    flags.mark_flags_as_required(["config", "output"])
    run_command(main, "regseg_jax.pack")


if __name__ == "__main__":
    run()
