import numpy as np
import pytest
from PIL import Image

from regseg_jax.data import centroids as centroids_module
from regseg_jax.data.centroids import find_centroids, load_centroids
from regseg_jax.data.classes import create_class_table
from regseg_jax.data.sources.source import FolderSource

TABLE = create_class_table("three", [(i, f"c{i}", (i, 0, 0), i) for i in range(3)])


def _label(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return (
        np.random.default_rng(seed).choice([0, 0, 0, 1, 2, 255], (height, width)).astype(np.uint8)
    )


@pytest.fixture
def source(tmp_path) -> FolderSource:
    pairs = []
    for i in range(4):
        paths = (tmp_path / f"{i}.png", tmp_path / f"{i}_label.png")
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(paths[0])
        Image.fromarray(_label(i) if i else np.ones((20, 30), np.uint8)).save(paths[1])
        pairs.append(tuple(map(str, paths)))
    return FolderSource(tuple(pairs), TABLE, "ids")


@pytest.fixture
def searches(monkeypatch) -> list[str]:
    """One entry for each time that the centroids are found again."""
    calls = []
    find_all = centroids_module._find_all

    def counted(*args):
        calls.append("found")
        return find_all(*args)

    monkeypatch.setattr(centroids_module, "_find_all", counted)
    return calls


@pytest.mark.parametrize(("height", "width"), [(20, 30), (16, 16), (7, 33)])
def test_centres_of_mass_of_every_tile(height, width):
    label = _label(5, height, width)
    expected = []
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            for i in range(3):
                rows, columns = np.nonzero(label[top : top + 8, left : left + 8] == i)
                if len(rows):
                    expected.append((i, top + int(rows.mean()), left + int(columns.mean())))
    assert find_centroids(label, 3, 8).tolist() == [list(row) for row in expected]


def test_tables_by_class(source, tmp_path):
    tables = load_centroids(tmp_path / "c.npz", source, 3, 1024)
    assert [len(table) for table in tables] == [3, 4, 3]
    assert tables[1][0].tolist() == [0, 9, 14]  # example 0 is all of class 1
    assert all(table.dtype == np.int32 for table in tables)


def test_found_once(source, tmp_path, searches):
    path = tmp_path / "folder" / "c.npz"
    first = load_centroids(path, source, 3, 8)
    again = load_centroids(path, source, 3, 8)
    assert searches == ["found"]
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert [p.name for p in path.parent.iterdir()] == ["c.npz"]


def test_made_again_where_a_label_has_changed(source, tmp_path, searches):
    path = tmp_path / "c.npz"
    load_centroids(path, source, 3, 8)
    Image.fromarray(np.full((20, 30), 2, np.uint8)).save(source.pairs[0][1])
    tables = load_centroids(path, source, 3, 1024)
    assert tables[2][0].tolist() == [0, 9, 14]
    load_centroids(path, source, 3, 8)  # another tile size
    assert searches == ["found"] * 3


@pytest.mark.parametrize("fraction", [0, 0.3, 0.9])
def test_made_again_where_truncated(source, tmp_path, searches, fraction):
    path = tmp_path / "c.npz"
    first = load_centroids(path, source, 3, 8)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    again = load_centroids(path, source, 3, 8)
    assert len(searches) == 2
    np.testing.assert_array_equal(first[0], again[0])
    assert path.read_bytes()[:2] == b"PK"


def test_file_of_another_data_set_is_refused_and_kept(source, tmp_path):
    path = tmp_path / "c.npz"
    other = FolderSource(source.pairs[1:], TABLE, "ids")
    load_centroids(path, other, 3, 8)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"c\.npz holds the centroids of another data set.*delete"):
        load_centroids(path, source, 3, 8)
    assert path.read_bytes() == before


def test_bad_label_is_named_and_nothing_is_left(source, tmp_path):
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(source.pairs[2][1])
    with pytest.raises(ValueError, match=r"2_label\.png holds label values \[7\]"):
        load_centroids(tmp_path / "new" / "c.npz", source, 3, 8)
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_is_named(source, tmp_path):
    with pytest.raises(ValueError, match=r"cannot write .*set --config.data.centroid_file"):
        load_centroids(tmp_path / "0.png" / "c.npz", source, 3, 8)
