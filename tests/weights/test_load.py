import hashlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.torch
import small_import
import torch
from small_import import NAME, NUM_CLASSES

from regseg_jax.data.classes import CAMVID, CITYSCAPES
from regseg_jax.export.export import export_run
from regseg_jax.models import variants
from regseg_jax.runs.trained import load_run
from regseg_jax.weights import load
from regseg_jax.weights.load import load_weights, load_weights_file
from regseg_jax.weights.metadata import find_class_table


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small_backbone):
    return small_import.create_run(tmp_path_factory.mktemp("imported"))


@pytest.fixture(scope="module")
def exported(workdir):
    export_run(workdir, "safetensors", workdir.parent / "a.safetensors")
    return workdir.parent / "a.safetensors"


@pytest.mark.parametrize("format_name", ["safetensors", "torch"])
def test_an_exported_file_stands_for_its_run(workdir, tmp_path, format_name):
    export_run(workdir, format_name, tmp_path / "a")
    weights, trained = load_weights(tmp_path / "a"), load_run(workdir)
    assert "not read" not in weights.report
    assert weights.variant == trained.model.variant
    assert weights.class_table == CAMVID
    assert weights.image_size == ()
    assert weights.create_model() == trained.model
    jax.tree.map(np.testing.assert_array_equal, weights.variables, trained.variables)


def test_a_safetensors_file_is_a_state_dict_of_pytorch(exported):
    tensors = safetensors.torch.load_file(exported)
    expected = small_import.create_weights()
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].equal(tensor) for name, tensor in expected.items())


def test_half_precision(workdir, exported, tmp_path):
    export_run(workdir, "safetensors", tmp_path / "a", dtype="float16")
    assert (tmp_path / "a").stat().st_size < 0.6 * exported.stat().st_size
    half, full = load_weights_file(tmp_path / "a").arrays, load_weights_file(exported).arrays
    for name, array in full.items():
        expected = array.astype(np.float16).astype(array.dtype) if array.ndim else array
        np.testing.assert_array_equal(half[name], expected)
        assert half[name].dtype == array.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_safetensors_file_of_others_is_read_by_its_shapes(tmp_path, dtype):
    weights = {
        f"module.{name}": tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in small_import.create_weights().items()
    }
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    loaded = load_weights(tmp_path / "a.safetensors")
    assert loaded.variant.name == NAME
    assert loaded.class_table == CAMVID
    assert "without the prefix 'module.'" in loaded.report
    assert "its 11 classes are taken for camvid's" in loaded.report
    kernel = loaded.variables["params"]["stem"]["conv"]["kernel"]
    expected = weights["module.stem.conv.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_variants_of_the_same_shapes_have_to_be_told_apart(workdir, monkeypatch):
    path = workdir.parent / "weights.pth"
    rates = [[1]] * len(variants.get_dilation_rates(variants.BACKBONES["small"]))
    twin = variants.replace_dilation_rates(variants.BACKBONES["small"], rates)
    monkeypatch.setitem(variants.BACKBONES, "twin", twin)
    with pytest.raises(ValueError, match=r"small_decoder26, twin_decoder26 .*--model=NAME"):
        load_weights(path)
    assert load_weights(path, "twin_decoder26").variant.name == "twin_decoder26"


def test_another_model_than_the_files_own_is_refused(exported):
    with pytest.raises(ValueError, match=f"holds weights of {NAME}, not of exp48_decoder26"):
        load_weights(exported, "exp48_decoder26")


def test_shipped_weights_are_found_by_name(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"no weights file street.*names are: none"):
        load_weights("street")
    shutil.copy(exported, tmp_path / "camvid.safetensors")
    assert load_weights("camvid").variant.name == NAME
    with pytest.raises(ValueError, match=r"no weights file street.*names are: camvid"):
        load_weights("street")


def test_every_shipped_file_has_its_model_card():
    for path in load.SHIPPED_FOLDER.glob("*.safetensors"):
        card = path.with_suffix(".md").read_text()
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
        assert f"{path.stat().st_size:,} bytes" in card
        assert path.stat().st_size < 8_000_000
        table = load_weights(path.stem).class_table
        assert all(f"| {name} | " in card for name in table.class_names)


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_file_that_is_cut_off_is_named_with_its_size(exported, tmp_path, fraction):
    content = exported.read_bytes()
    size = int(fraction * len(content))
    (tmp_path / "b.safetensors").write_bytes(content[:size])
    with pytest.raises(ValueError, match=rf"b\.safetensors \({size:,} bytes\) .*cut off"):
        load_weights(tmp_path / "b.safetensors")


def test_values_that_are_not_finite_are_refused(tmp_path):
    weights = small_import.create_weights()
    weights["stem.bn.bias"][3] = np.nan
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"NaN or infinity in stem\.bn\.bias"):
        load_weights(tmp_path / "a.safetensors")


def test_classes_that_no_file_names():
    assert find_class_table({}, 19)[0] == CITYSCAPES
    table, assumed = find_class_table({}, 40)
    assert table.class_names[39] == "class 39"
    assert len(set(table.colors)) == 40
    assert "made up" in assumed
    names = tuple("abcdefghijk")  # as many as CamVid has, and others
    assert find_class_table({"class_names": names}, NUM_CLASSES)[0].class_names == names
