import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from cityscapes_tree import write_cityscapes

from regseg_jax.data.classes import CITYSCAPES
from regseg_jax.data.sources.cityscapes import load_cityscapes
from regseg_jax.data.sources.tfds import NAME, TfdsCityscapes

ROOT = pathlib.Path(__file__).parents[3]

# In a process of its own: tensorflow_datasets warns while it is imported and while it writes.
# Written by its own SequentialWriter, which needs no TensorFlow, with the features of its
# Cityscapes builder (except for the size).
PREPARE = """
import pathlib, sys
import tensorflow_datasets as tfds
tree, folder = map(pathlib.Path, sys.argv[1:])
png = {"encoding_format": "png"}
features = tfds.features.FeaturesDict({
    "image_id": tfds.features.Text(),
    "image_left": tfds.features.Image(shape=(32, 64, 3), **png),
    "segmentation_label": tfds.features.Image(shape=(32, 64, 1), use_colormap=True, **png),
})
identity = tfds.core.dataset_info.DatasetIdentity(
    name="cityscapes", config_name="semantic_segmentation", version="1.0.0",
    data_dir=str(folder), module_name="",
)
info = tfds.core.DatasetInfo(builder=identity, features=features)
writer = tfds.core.SequentialWriter(info, 2, file_format="array_record")
splits = {"train": "train", "validation": "val"}
writer.initialize_splits(list(splits))
for name, split in splits.items():
    for image in sorted((tree / "leftImg8bit" / split).glob("*/*.png")):
        image_id = image.name.removesuffix("_leftImg8bit.png")
        label = tree / "gtFine" / split / image.parent.name / f"{image_id}_gtFine_labelIds.png"
        example = {"image_id": image_id, "image_left": str(image), "segmentation_label": str(label)}
        writer.add_examples({name: [example]})
writer.close_all()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("tree")
    return write_cityscapes(root, num_examples={"train": 3, "val": 2}, height=32, width=64)


@pytest.fixture(scope="module")
def prepared(tree, tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("tfds")
    folder = root / NAME / "1.0.0"
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", PREPARE, str(tree), str(folder)], check=True)
    return root


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_same_examples_as_the_folders(tree, prepared, split):
    folders = load_cityscapes(tree, split, CITYSCAPES)
    source = pickle.loads(pickle.dumps(TfdsCityscapes(str(prepared), split, CITYSCAPES)))
    assert len(source) == len(folders)
    expected = {example["name"]: example for example in folders}
    for i in range(len(source)):
        example = source[i]
        other = expected.pop(example["name"])
        for key in ("image", "label"):
            assert example[key].dtype == np.uint8
            np.testing.assert_array_equal(example[key], other[key])
    assert not expected


def test_reading_needs_no_tensorflow(prepared):
    script = (
        "import sys; from regseg_jax.data.sources.tfds import TfdsCityscapes;"
        "from regseg_jax.data.classes import CITYSCAPES;"
        f"TfdsCityscapes({str(prepared)!r}, 'val', CITYSCAPES)[0];"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_fingerprints_tell_splits_apart(prepared):
    train, val = (
        TfdsCityscapes(str(prepared), s, CITYSCAPES).fingerprint() for s in ("train", "val")
    )
    assert train.data_set != val.data_set
    assert train == TfdsCityscapes(str(prepared), "train", CITYSCAPES).fingerprint()


@pytest.fixture
def copied(prepared, tmp_path) -> pathlib.Path:
    """The metadata alone."""
    folder = tmp_path / NAME / "1.0.0"
    folder.mkdir(parents=True)
    for path in (prepared / NAME / "1.0.0").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_folder_that_is_not_array_record_is_named(copied, tmp_path):
    info = copied / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert json.loads(info.read_text())["fileFormat"] == "tfrecord"
    with pytest.raises(
        ValueError, match=rf"{NAME}/1\.0\.0 is not prepared as ArrayRecord; .*--file_format="
    ):
        TfdsCityscapes(str(tmp_path), "train", CITYSCAPES)


def test_other_faults_are_named(copied, prepared, tmp_path):
    with pytest.raises(ValueError, match="'valid' is none of train, val, trainval, test"):
        TfdsCityscapes(str(prepared), "valid", CITYSCAPES)
    with pytest.raises(ValueError, match=rf"holds no {NAME} prepared .*--config.data.data_dir"):
        TfdsCityscapes(str(tmp_path / "absent"), "train", CITYSCAPES)
    (copied / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*1\.0\.0: .*prepare it again"):
        TfdsCityscapes(str(tmp_path), "train", CITYSCAPES)
