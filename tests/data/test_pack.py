import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from cityscapes_tree import write_cityscapes
from PIL import Image

from regseg_jax.data import pack
from regseg_jax.data.dataset import DataConfig, Dataset, FolderConfig
from regseg_jax.data.pack import pack_sources
from regseg_jax.data.pipeline import ProcessShard, create_train_iterator
from regseg_jax.data.sources.packed import INDEX_FILE, is_packed
from regseg_jax.data.sources.source import FolderSource
from regseg_jax.data.survey import survey_source

ROOT = pathlib.Path(__file__).parents[2]
CLASSES = tuple((i, f"class {i}", (i, 0, 0), 10 * i) for i in range(4))
NUM_TRAIN, NUM_VAL = 9, 2


def write_pair(folder: pathlib.Path, name: str, seed: int) -> None:
    """Pictures of several formats, sizes and orientations; the label as a PNG or a PGM."""
    rng = np.random.default_rng(seed)
    height, width = (12 + seed % 3, 16)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    if seed % 2:
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        image.save(folder / "images" / f"{name}.jpg", exif=exif)
    else:
        image.save(folder / "images" / f"{name}.png")
    label = Image.fromarray(10 * rng.integers(0, 4, (height, width), np.uint8))
    label.save(folder / "labels" / f"{name}.{'pgm' if seed % 3 == 0 else 'png'}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("mine")
    for i in range(NUM_TRAIN):
        write_pair(root / "train", f"é{i}", i)
    for i in range(NUM_VAL):
        write_pair(root / "val", f"v{i}", 3 * i)
    return root


def create_dataset(data_dir: pathlib.Path, source: str = "folder", **changes) -> Dataset:
    data = DataConfig(source, str(data_dir), **changes)
    return Dataset(data, FolderConfig(classes=CLASSES), seed=3)


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory) -> pathlib.Path:
    dataset = create_dataset(folder)
    sources = {split: dataset.open_split(split) for split in dataset.list_stored_splits()}
    output = tmp_path_factory.mktemp("out") / "packed"
    pack_sources(sources, "folder", output, shard_bytes=2000)
    return output


@pytest.fixture
def copied(packed, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(packed, tmp_path / "copy"))


def assert_equal_examples(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_examples_and_what_is_told_of_them_are_equal(folder, packed, split):
    expected = create_dataset(folder).create_source(split)
    found = create_dataset(packed).create_source(split)
    assert len(found) == len(expected)
    assert found.image_sizes == expected.image_sizes
    assert found.fingerprint().data_set == expected.fingerprint().data_set
    for i in range(len(expected)):
        assert_equal_examples(found[i], expected[i])
        np.testing.assert_array_equal(found.load_raw_label(i), expected.load_raw_label(i))
    assert isinstance(expected, FolderSource)
    assert not isinstance(found, FolderSource)
    surveys = [survey_source(source, 4, "", keep_going=True) for source in (found, expected)]
    assert surveys[0].value_pixels == surveys[1].value_pixels


@pytest.mark.parametrize(("share", "num_workers"), [(0.0, 0), (0.5, 0), (0.5, 1)])
def test_training_gets_the_same_batches(folder, packed, tmp_path, share, num_workers):
    batches = {}
    for data_dir in (folder, packed):
        dataset = create_dataset(data_dir, class_uniform_share=share, tile_size=8)
        source = dataset.create_source("train")
        workdir = tmp_path / data_dir.name
        workdir.mkdir()
        with create_train_iterator(
            source,
            dataset.create_sampler(source, 4, workdir),
            ProcessShard(0, 1),
            start_step=1,
            num_steps=5,
            num_workers=num_workers,
        ) as iterator:
            batches[data_dir] = list(iterator)
    assert len(batches[packed]) == 4
    for found, expected in zip(batches[packed], batches[folder], strict=True):
        assert_equal_examples(found, expected)


def test_shards_are_cut_by_size_and_hold_the_files_as_they_were(folder, packed):
    index = json.loads((packed / INDEX_FILE).read_text())
    shards = index["splits"]["train"]["shards"]
    assert len(shards) > 2
    assert {path.name for path in packed.iterdir()} == {
        INDEX_FILE,
        *(shard["file"] for split in index["splits"].values() for shard in split["shards"]),
    }
    assert index["class_names"] == [row[1] for row in CLASSES]
    source = create_dataset(packed).create_source("train")
    for i, (image, label) in enumerate(create_dataset(folder).create_source("train").pairs):
        files = source.load_files(i)
        assert [file.data for file in files] == [
            pathlib.Path(x).read_bytes() for x in (image, label)
        ]


def test_images_are_held_back_as_from_the_folder(folder, tmp_path):
    shutil.copytree(folder / "train", tmp_path / "mine" / "train")
    settings = FolderConfig(classes=CLASSES, val_fraction=0.3)
    dataset = Dataset(DataConfig("folder", str(tmp_path / "mine")), settings, seed=5)
    assert dataset.list_stored_splits() == ("train",)
    sources = {"train": dataset.open_split("train")}
    pack_sources(sources, "folder", tmp_path / "packed", shard_bytes=10**6)
    data = dataclasses.replace(dataset.config, data_dir=str(tmp_path / "packed"))
    other = dataclasses.replace(dataset, config=data)
    for split, count in (("train", 6), ("val", 3)):
        found, expected = other.create_source(split), dataset.create_source(split)
        assert len(found) == count
        assert found.image_names == expected.image_names
        assert found.image_sizes == expected.image_sizes
        assert_equal_examples(found[1], expected[1])


def test_cityscapes_and_its_trainval(tmp_path):
    counts = {"train": 3, "val": 2, "test": 1}
    root = write_cityscapes(tmp_path / "raw", num_examples=counts, height=32, width=64)
    dataset = create_dataset(root, "cityscapes", train_split="trainval")
    assert dataset.list_stored_splits() == ("train", "val")
    sources = {split: dataset.open_split(split) for split in counts}
    pack_sources(sources, "cityscapes", tmp_path / "packed", shard_bytes=1)
    other = create_dataset(tmp_path / "packed", "cityscapes")
    for split in (*counts, "trainval"):
        found, expected = other.create_source(split), dataset.create_source(split)
        assert len(found) == len(expected)
        for i in range(len(expected)):
            assert_equal_examples(found[i], expected[i])
    with pytest.raises(ValueError, match=r"packed from cityscapes.* set --config.data.source"):
        create_dataset(tmp_path / "packed", "camvid").create_source("train")


def read_all(data_dir: pathlib.Path) -> None:
    source = create_dataset(data_dir).create_source("train")
    for i in range(len(source)):
        source[i]


def test_a_truncated_or_missing_shard_is_named(copied):
    shard = sorted(copied.glob("train-*"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=f"{shard.name} has .* bytes, not .* pack again"):
        read_all(copied)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        read_all(copied)


def test_changed_bytes_of_a_shard_are_named(copied):
    shard = sorted(copied.glob("train-*"))[1]
    whole = shard.read_bytes()
    source = create_dataset(copied).create_source("train")
    i = source.shards.index(str(shard))
    for place in (whole.index(file.data) + 20 for file in source.load_files(i)):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=f"{shard.name} is damaged at é{i}"):
            read_all(copied)


def test_a_record_in_the_place_of_another_is_found(copied):
    first, second = sorted(copied.glob("train-*"))[:2]
    index = json.loads((copied / INDEX_FILE).read_text())
    shard = index["splits"]["train"]["shards"][1]
    second.write_bytes(first.read_bytes())
    shard["bytes"] = first.stat().st_size
    (copied / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{second.name} is damaged at"):
        read_all(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is damaged"), ('{"version": 9}', "is of version 9"), ("[]", "is damaged")],
)
def test_a_bad_index_is_named(copied, text, message):
    (copied / INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{INDEX_FILE} {message}"):
        read_all(copied)


def test_a_split_that_was_not_packed(packed):
    with pytest.raises(ValueError, match=r"no split 'test' .* train, val\); pack again"):
        create_dataset(packed).create_source("test")


def test_an_error_on_the_way_leaves_nothing(folder, tmp_path):
    broken = pathlib.Path(shutil.copytree(folder, tmp_path / "broken"))
    source = create_dataset(broken).open_split("train")
    unreadable = pathlib.Path(source.pairs[6][0])
    unreadable.unlink()
    unreadable.mkdir()
    with pytest.raises(OSError, match="é6"):
        pack_sources({"train": source}, "folder", tmp_path / "out" / "packed", shard_bytes=2000)
    assert list((tmp_path / "out").iterdir()) == []


PACK_AND_DIE = """
import os, sys
from regseg_jax.data import pack
from regseg_jax.data.dataset import DataConfig, Dataset, FolderConfig
pack.write_json = lambda *_: os._exit(9)  # all shards are there, the index is not
folder = FolderConfig(classes=((0, "a", (0, 0, 0), 0),))
source = Dataset(DataConfig("folder", sys.argv[1]), folder, 0).open_split("train")
pack.pack_sources({"train": source}, "folder", sys.argv[2], 2000)
"""


def test_a_killed_pack_is_no_data_set_and_the_next_one_replaces_it(folder, tmp_path):
    output, partial = tmp_path / "packed", tmp_path / ".packed.partial"
    command = [sys.executable, "-c", PACK_AND_DIE, folder, output]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    assert list(tmp_path.iterdir()) == [partial]
    assert any(partial.glob("train-*"))
    assert not is_packed(partial)
    recipe = ("--config=configs/folder.py", f"--config.data.data_dir={folder}")
    command = [sys.executable, "-m", "regseg_jax.pack", *recipe, f"--output={output}"]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert f"(train: {NUM_TRAIN} images, val: {NUM_VAL} images)" in result.stdout
    assert list(tmp_path.iterdir()) == [output]
    assert len(create_dataset(output).create_source("train")) == NUM_TRAIN


def test_two_at_once_are_refused(folder, tmp_path):
    source = create_dataset(folder).open_split("train")
    with pack._partial_folder(tmp_path / "packed"):
        with pytest.raises(ValueError, match="another process is packing"):
            pack_sources({"train": source}, "folder", tmp_path / "packed", shard_bytes=2000)
        (tmp_path / "packed").mkdir()
        with pytest.raises(ValueError, match="exists already"):
            pack_sources({"train": source}, "folder", tmp_path / "packed", shard_bytes=2000)
        (tmp_path / "packed").rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_disk_that_is_too_small_is_said_first(folder, tmp_path, monkeypatch):
    source = create_dataset(folder).open_split("train")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"packed needs 0.0 GB, and 0.0 GB are free"):
        pack_sources({"train": source}, "folder", tmp_path / "packed", shard_bytes=2000)
    assert list(tmp_path.iterdir()) == []
