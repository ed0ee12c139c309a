import pytest
from PIL import Image

from regseg_jax.prediction.inputs import find_inputs


@pytest.fixture
def folder(tmp_path):
    for name in ("a.PNG", "sub/b.webp", "sub/deep/c.tif", "clip.mp4", "._a.png", ".git/d.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for name in ("notes.txt", "README", "Thumbs.db"):
        (tmp_path / "photos" / name).write_text("")
    return tmp_path / "photos"


def names(entries):
    return [entry.name for entry in entries]


def test_folders_are_searched_whole_and_the_rest_is_named(folder):
    inputs = find_inputs([folder])
    assert names(inputs.images) == ["a", "sub/b", "sub/deep/c"]
    assert names(inputs.videos) == ["clip"]
    assert {reason: [p.name for p in paths] for reason, paths in inputs.skipped.items()} == {
        "hidden, or a file of the system": ["._a.png", ".git", "Thumbs.db"],
        "no image or video has the suffix .txt": ["notes.txt"],
        "no suffix": ["README"],
    }
    assert f"left out 1 (no suffix): {folder / 'README'}" in inputs.describe_skipped()


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".webp", ".jfif", ".bmp", ".JPG", ".gif"])
def test_every_format_that_pillow_reads(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    assert names(find_inputs([tmp_path]).images) == ["a"]


def test_files_that_differ_in_their_suffix_alone_keep_it(tmp_path):
    for name in ("street.tif", "street.webp", "sub/street.tif", "street.v2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    expected = ["street.tif", "street.v2", "street.webp", "sub/street"]
    assert names(find_inputs([tmp_path]).images) == expected


def test_a_file_by_itself_is_taken_whatever_its_suffix(folder):
    inputs = find_inputs([folder / "notes.txt", folder / "sub"])
    assert names(inputs.images) == ["notes", "b", "deep/c"]


def test_the_output_inside_the_folder_is_left_out(folder):
    (folder / "out").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "out" / "a.png")
    inputs = find_inputs([folder], folder / "out")
    assert "out/a" not in names(inputs.images)
    assert inputs.skipped["the output folder"] == [folder / "out"]


def test_links_to_folders_are_named(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "e.png").write_bytes(b"")
    (folder / "link").symlink_to(tmp_path / "other")
    inputs = find_inputs([folder])
    assert inputs.skipped["a link to a folder; name it to have it"] == [folder / "link"]
    assert "e" in names(find_inputs([folder / "link"]).images)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no image or video; pass files"),
        (["nowhere"], "there is no .*nowhere"),
        (["empty"], r"no image or video in .*empty \(left out 1 \(no image .* suffix \.csv\)"),
        (["sub", "other"], r"sub/b\.webp and .*other/b\.webp would both write b\.webp\.png"),
    ],
)
def test_paths_that_do_not_do(folder, paths, message):
    for name in ("empty/table.csv", "other/b.webp"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("")
    with pytest.raises(ValueError, match=message):
        find_inputs([folder / path for path in paths])
