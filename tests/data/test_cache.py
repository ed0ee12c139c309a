import dataclasses
import pathlib
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from regseg_jax.data import cache
from regseg_jax.data.cache import load_cached
from regseg_jax.data.classes import CAMVID
from regseg_jax.data.decode import DECODER_VERSION
from regseg_jax.data.sources import source as source_module
from regseg_jax.data.sources.source import FolderSource

SIZES = ((4, 6), (5, 3), (4, 6))


def _create_source(root: pathlib.Path, sizes: tuple[tuple[int, int], ...]) -> FolderSource:
    root.mkdir(exist_ok=True)
    rng, pairs = np.random.default_rng(0), []
    for i, size in enumerate(sizes):
        image, label = root / f"{i}.png", root / f"{i}_label.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 11, size, np.uint8)).save(label)
        pairs.append((str(image), str(label)))
    return FolderSource(tuple(pairs), CAMVID, "ids", sizes if len(set(sizes)) > 1 else None)


@pytest.fixture(params=[SIZES, ((4, 6),) * 3], ids=["mixed", "one size"])
def source(tmp_path, request) -> FolderSource:
    return _create_source(tmp_path / "data", request.param)


@pytest.fixture
def writes(monkeypatch) -> list[str]:
    """One entry for each time that a cache is written."""
    calls, write = [], cache._write

    def counted(*args):
        calls.append("written")
        write(*args)

    monkeypatch.setattr(cache, "_write", counted)
    return calls


def _assert_same(cached, source) -> None:
    assert len(cached) == len(source)
    assert cached.image_sizes == source.image_sizes
    assert cached.fingerprint() == source.fingerprint()
    for i in range(len(source)):
        assert cached[i]["name"] == source[i]["name"]
        for key in ("image", "label"):
            assert cached[i][key].dtype == np.uint8
            np.testing.assert_array_equal(cached[i][key], source[i][key])


def test_same_examples_written_once(source, tmp_path, writes):
    _assert_same(load_cached(tmp_path / "cache", "train", source), source)
    cached = load_cached(tmp_path / "cache", "train", source)
    _assert_same(pickle.loads(pickle.dumps(cached)), source)
    assert writes == ["written"]
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {"train.bin", "train.json", "train.lock"}


def test_made_again_where_a_file_has_changed(source, tmp_path, writes):
    load_cached(tmp_path, "train", source)
    height, width = source[1]["label"].shape
    Image.new("RGB", (width, height), (1, 2, 3)).save(source.pairs[1][0])
    cached = load_cached(tmp_path, "train", source)
    assert (cached[1]["image"] == (1, 2, 3)).all()
    # Another data set of that name.
    other = dataclasses.replace(source, pairs=source.pairs[::-1], image_sizes=SIZES[::-1])
    if source.image_sizes:
        _assert_same(load_cached(tmp_path, "train", other), other)
        assert len(writes) == 3


def test_made_again_where_the_decoder_has_changed(source, tmp_path, writes, monkeypatch):
    load_cached(tmp_path, "train", source)
    monkeypatch.setattr(source_module, "DECODER_VERSION", DECODER_VERSION + 1)
    _assert_same(load_cached(tmp_path, "train", source), source)
    assert len(writes) == 2


@pytest.mark.parametrize("suffix", ["bin", "json"])
def test_made_again_where_truncated(source, tmp_path, writes, suffix):
    load_cached(tmp_path, "train", source)
    path = tmp_path / f"train.{suffix}"
    path.write_bytes(path.read_bytes()[:-7])
    _assert_same(load_cached(tmp_path, "train", source), source)
    assert len(writes) == 2


def test_what_a_kill_leaves_is_overwritten(source, tmp_path):
    (tmp_path / "train.bin.partial").write_bytes(bytes(10_000))
    _assert_same(load_cached(tmp_path, "train", source), source)
    assert not (tmp_path / "train.bin.partial").exists()


def test_a_changed_byte_is_noticed(source, tmp_path):
    cached = load_cached(tmp_path, "train", source)
    path = tmp_path / "train.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    cached[0]
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))} is damaged at example 2 \(2\); del"
    ):
        cached[2]


def test_a_bad_example_is_named_and_nothing_stays(source, tmp_path):
    pathlib.Path(source.pairs[1][0]).write_text("nothing")
    with pytest.raises(ValueError, match=r"cannot read .*1\.png"):
        load_cached(tmp_path / "cache", "train", source)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["train.lock"]


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot keep decoded images in .*file.*data.cache_dir"):
        load_cached(tmp_path / "file", "train", source)
