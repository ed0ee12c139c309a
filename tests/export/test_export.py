import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_import
import torch
from small_import import NAME, NUM_CLASSES

from regseg_jax.data.augment import MEAN, STD
from regseg_jax.data.classes import CAMVID
from regseg_jax.export import export, torch_format
from regseg_jax.export.export import export_run, write_new_file
from regseg_jax.export.torch_model import create_torch_model
from regseg_jax.models.searched_conv import LOGITS, RATES
from regseg_jax.runs import trained as run
from regseg_jax.weights.load import load_weights_file
from regseg_jax.weights.torch_files import load_state_dict_file


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small_backbone) -> pathlib.Path:
    return small_import.create_run(tmp_path_factory.mktemp("imported"))


@pytest.fixture(scope="module")
def trained(workdir) -> run.Trained:
    return run.Trained.from_run(run.load_run(workdir))


def test_a_torch_file_is_a_state_dict_and_plain_data(workdir, tmp_path):
    export_run(workdir, "torch", tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content.pop("version", None)  # there where the package is installed
    model = create_torch_model(NAME, NUM_CLASSES)
    model.load_state_dict(content.pop("model"), strict=True)
    assert json.loads(json.dumps(content)) == {
        "name": NAME,
        "num_classes": 11,
        "class_names": list(CAMVID.class_names),
        "class_table": "camvid",
        "colors": [list(color) for color in CAMVID.colors],
        "label_ids": list(CAMVID.label_ids),
        "ignored_label_ids": [11, 255],
        "ignored_colors": [list(color) for color in CAMVID.ignored_colors],
        "reduced_without": [],
        "mean": list(MEAN),
        "std": list(STD),
        "image_size": [],
        "step": 0,
    }
    assert load_state_dict_file(tmp_path / "a.pt").tensors.keys() == model.state_dict().keys()


def test_steps_taken_here_count_as_batches(trained):
    name = "stem.bn.num_batches_tracked"
    later = dataclasses.replace(trained, step=7, counters={})
    fresh = torch_format.create_trained_torch_model(later).state_dict()
    assert fresh[name] == 7
    assert fresh[name].dtype == torch.int64
    later = dataclasses.replace(later, counters={name: 5})
    assert torch_format.create_trained_torch_model(later).state_dict()[name] == 12


@pytest.mark.parametrize("format_name", export.FORMATS)
def test_an_output_that_exists_is_left_alone(workdir, tmp_path, format_name):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(ValueError, match=r"a exists already; choose another output"):
        export_run(workdir, format_name, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "precious"


def test_a_missing_folder_is_made(workdir, tmp_path):
    export_run(workdir, "torch", tmp_path / "new" / "a.pt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("format_name", "package"), [("torch", "torch"), ("onnx", "onnx"), ("stablehlo", "flatbuffers")]
)
def test_a_missing_package_is_named(workdir, tmp_path, monkeypatch, format_name, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = f"--format={format_name} needs {package}, .* pip install {package}"
    with pytest.raises(ValueError, match=message):
        export_run(workdir, format_name, tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_options_that_a_torch_file_has_not_are_refused(workdir, tmp_path):
    for options in ({"size": (64, 96)}, {"class_map": True}):
        with pytest.raises(ValueError, match=r"leave out --size and --class_map"):
            export_run(workdir, "torch", tmp_path / "a.pt", **options)
    with pytest.raises(ValueError, match=r"--format is 'tflite'; use one of safetensors, torch"):
        export_run(workdir, "tflite", tmp_path / "a.pt")


@pytest.mark.parametrize("format_name", export.FORMATS)
def test_weights_that_are_not_finite_are_refused(trained, tmp_path, format_name):
    variables = jax.tree.map(np.array, trained.variables)
    variables["params"]["stem"]["bn"]["bias"][3] = np.nan
    broken = dataclasses.replace(trained, variables=variables)
    with pytest.raises(ValueError, match=r"step 0 has NaN or infinity in .*stem.bn.bias"):
        export_run(broken, format_name, tmp_path / "a")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("searched", [RATES, LOGITS])
def test_a_search_is_refused(trained, tmp_path, searched):
    params = {**trained.variables["params"], "conv": {searched: np.ones(2, np.float32)}}
    search = dataclasses.replace(trained, variables={**trained.variables, "params": params})
    with pytest.raises(ValueError, match=r"train what it found first: .*run/found\.json"):
        export_run(search, "torch", tmp_path / "a.pt")


def test_averaged_weights_are_exported_where_there_are_some(trained, tmp_path):
    with pytest.raises(ValueError, match=r"--ema: .*run has no averaged weights"):
        export_run(trained, "safetensors", tmp_path / "a", ema=True)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, trained.variables)
    averaged = dataclasses.replace(trained, ema_variables=doubled)
    export_run(averaged, "safetensors", tmp_path / "a", ema=True)
    weights = run.Trained.from_weights(tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, weights.variables, doubled)


@pytest.mark.parametrize("format_name", ["safetensors", "torch"])
def test_a_weights_file_is_exported_as_its_run(workdir, tmp_path, format_name):
    export_run(workdir, format_name, tmp_path / "a")
    export_run(run.Trained.from_weights(tmp_path / "a"), "safetensors", tmp_path / "b")
    export_run(workdir, "safetensors", tmp_path / "c")
    twice, once = load_weights_file(tmp_path / "b"), load_weights_file(tmp_path / "c")
    assert twice.metadata == once.metadata
    assert twice.arrays.keys() == once.arrays.keys()
    for name, array in once.arrays.items():
        np.testing.assert_array_equal(twice.arrays[name], array)


def test_half_precision_is_of_safetensors(workdir, tmp_path):
    for format_name, dtype in (("torch", "float16"), ("safetensors", "int8")):
        with pytest.raises(ValueError, match=f"--dtype is '{dtype}'"):
            export_run(workdir, format_name, tmp_path / "a", dtype=dtype)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_new_file(tmp_path / "a", b"content")
    assert not any(tmp_path.iterdir())


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        write_new_file(tmp_path / "a", b"content")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    command = [sys.executable, "-m", "regseg_jax.export", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [*command, "--format=torch", f"--output={tmp_path / 'a.pt'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("regseg_jax.export: error:")
    assert "holds no run" in done.stderr
