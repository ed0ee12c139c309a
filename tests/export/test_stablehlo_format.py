import json
import os
import pathlib
import subprocess
import sys
import textwrap
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_import

from regseg_jax.data.augment import MEAN, STD
from regseg_jax.data.classes import CAMVID
from regseg_jax.export import stablehlo_format
from regseg_jax.export.export import export_run
from regseg_jax.models.regseg import create_model
from regseg_jax.models.variants import get_variant
from regseg_jax.runs import trained as run


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small_backbone) -> pathlib.Path:
    return small_import.create_run(tmp_path_factory.mktemp("imported"))


def create_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((*shape, 3)).astype(np.float32)


def compute_logits(workdir: pathlib.Path, images: np.ndarray) -> np.ndarray:
    trained = run.load_run(workdir)
    apply = jax.jit(lambda variables, x: trained.model.apply(variables, x, train=False))
    return np.asarray(apply(trained.variables, images))


def load(path: pathlib.Path) -> tuple[jax.export.Exported, dict]:
    with zipfile.ZipFile(path) as file:
        exported = jax.export.deserialize(bytearray(file.read("model.bin")))
        return exported, json.loads(file.read("metadata.json"))


RUN_WITHOUT_THE_PACKAGE = """
    import sys, zipfile
    import jax, numpy as np
    from jax import export
    path, images_path, output_path = sys.argv[1:]
    with zipfile.ZipFile(path) as file:
        exported = export.deserialize(bytearray(file.read("model.bin")))
    with np.load(images_path) as images:
        outputs = {name: np.asarray(exported.call(images[name])) for name in images}
    assert not any(name.startswith(("regseg", "flax")) for name in sys.modules)
    np.savez(output_path, **outputs)
"""


def test_a_fresh_process_runs_any_batch_and_size_without_the_package(workdir, tmp_path):
    export_run(workdir, "stablehlo", tmp_path / "a.zip")
    batches = {"wide": create_images(1, 64, 96), "tall": create_images(3, 96, 64)}
    np.savez(tmp_path / "images.npz", **batches)
    subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(RUN_WITHOUT_THE_PACKAGE)),
            *(tmp_path / name for name in ("a.zip", "images.npz", "outputs.npz")),
        ],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")},
        check=True,
    )
    with np.load(tmp_path / "outputs.npz") as outputs:
        for name, images in batches.items():
            logits = compute_logits(workdir, images)
            np.testing.assert_allclose(outputs[name], logits, rtol=0, atol=1e-4 * logits.std())


def test_a_fixed_odd_size_gives_class_maps_of_any_batch(workdir, tmp_path):
    export_run(workdir, "stablehlo", tmp_path / "a.zip", (37, 51), class_map=True)
    exported, metadata = load(tmp_path / "a.zip")
    images = create_images(2, 37, 51)
    class_map = np.asarray(exported.call(images))
    assert class_map.dtype == np.uint8
    assert class_map.shape == (2, 37, 51)
    assert (class_map == compute_logits(workdir, images).argmax(-1)).mean() > 0.999  # ties
    with pytest.raises(ValueError, match="37"):
        exported.call(create_images(2, 32, 64))
    assert metadata["input"] == "float32[b,37,51,3]"
    assert metadata["output"] == "uint8[b,37,51]"


def test_preprocessing_class_names_and_platforms_travel_inside(workdir, tmp_path):
    export_run(workdir, "stablehlo", tmp_path / "a.zip", (32, 32))
    exported, metadata = load(tmp_path / "a.zip")
    assert metadata["mean"] == list(MEAN)
    assert metadata["std"] == list(STD)
    assert metadata["class_names"] == list(CAMVID.class_names)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_open_sizes_start_where_the_widest_rate_fits():
    sizes = {"small_decoder26": 64, "exp48_decoder26": 256, "exp49_decoder14": 320}
    for name, size in sizes.items():
        assert stablehlo_format.minimum_size(get_variant(name)) == size


def test_a_decoder_that_pools_into_bins_needs_a_size():
    model = create_model("small_SFNetDecoder", 5)
    variables = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0)
    )
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    with pytest.raises(ValueError, match=r"pools into bins; add --size=HEIGHT,WIDTH"):
        stablehlo_format.serialize(model, variables, {})
    stablehlo_format.serialize(model, variables, {}, (37, 51))
