import json
import pathlib

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import small_import
import torch

from regseg_jax.data.augment import MEAN, STD
from regseg_jax.data.classes import CAMVID
from regseg_jax.export import onnx_format
from regseg_jax.export.export import export_run
from regseg_jax.export.torch_model import create_torch_model
from regseg_jax.runs import trained as run


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small_backbone) -> pathlib.Path:
    return small_import.create_run(tmp_path_factory.mktemp("imported"))


def create_images(*shape: int) -> np.ndarray:
    """Normalised images f32[B, H, W, 3]."""
    return np.random.default_rng(0).standard_normal((*shape, 3)).astype(np.float32)


def compute_logits(workdir: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """JAX's, [B, H, W, classes]."""
    trained = run.load_run(workdir)
    apply = jax.jit(lambda variables, x: trained.model.apply(variables, x, train=False))
    return np.asarray(apply(trained.variables, images))


def run_onnx(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
    return output


def test_open_sizes_are_equal_to_jax_at_odd_sizes_too(workdir, tmp_path):
    export_run(workdir, "onnx", tmp_path / "a.onnx")
    for shape in ((2, 64, 96), (1, 37, 51)):
        images = create_images(*shape)
        logits = compute_logits(workdir, images)
        ours = run_onnx(tmp_path / "a.onnx", images).transpose(0, 2, 3, 1)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4 * logits.std())


def test_a_fixed_size_is_equal_to_jax_and_takes_no_other(workdir, tmp_path):
    export_run(workdir, "onnx", tmp_path / "a.onnx", (37, 51))
    images = create_images(1, 37, 51)
    logits = compute_logits(workdir, images)
    ours = run_onnx(tmp_path / "a.onnx", images).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4 * logits.std())
    with pytest.raises(Exception, match=r"Got invalid dimensions"):
        run_onnx(tmp_path / "a.onnx", create_images(1, 64, 96))


def test_the_class_map_is_the_largest_logit_of_each_pixel(workdir, tmp_path):
    export_run(workdir, "onnx", tmp_path / "a.onnx", class_map=True)
    images = create_images(2, 64, 96)
    ours = run_onnx(tmp_path / "a.onnx", images)
    assert ours.dtype == np.uint8
    assert ours.shape == (2, 64, 96)
    assert len(np.unique(ours)) > 3
    assert (ours == compute_logits(workdir, images).argmax(-1)).mean() > 0.999  # ties


def test_preprocessing_and_class_names_travel_inside(workdir, tmp_path):
    export_run(workdir, "onnx", tmp_path / "a.onnx", (32, 32))
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["mean"]) == list(MEAN)
    assert json.loads(metadata["std"]) == list(STD)
    assert json.loads(metadata["class_names"]) == list(CAMVID.class_names)
    assert metadata["name"] == small_import.NAME


@pytest.mark.parametrize("decoder", ["lraspp", "BisenetDecoder", "SFNetDecoder"])
def test_other_decoders_take_any_size(decoder, tmp_path):
    name = f"small_{decoder}"
    model = create_torch_model(name, 5).eval()
    model.load_state_dict(small_import.create_weights(5, name))
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx_format.serialize(model, {}))
    images = create_images(1, 107, 135)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    atol = 1e-4 * expected.std()
    np.testing.assert_allclose(run_onnx(path, images), expected, rtol=0, atol=atol)


def test_batch_norm_is_folded(workdir, tmp_path):
    export_run(workdir, "onnx", tmp_path / "a.onnx", (32, 32))
    operations = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "Conv" in operations
    assert "BatchNormalization" not in operations
