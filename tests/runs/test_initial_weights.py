import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_import
import torch
from flax.traverse_util import flatten_dict
from small_import import NAME, NUM_CLASSES

from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg, create_model
from regseg_jax.models.searched_model import create_search_model
from regseg_jax.runs import initial_weights
from regseg_jax.runs.initial_weights import load_initial_weights
from regseg_jax.weights.names import from_torch


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_backbone):
    """`run/` and `weights.pth` of the same weights."""
    return small_import.create_run(tmp_path_factory.mktemp("other")).parent


def _flat(weights: dict[str, torch.Tensor]) -> dict:
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    return flatten_dict(from_torch(arrays))


@pytest.mark.parametrize("source", ["run", "weights.pth"])
def test_every_array_is_loaded(folder, source):
    initial = load_initial_weights(folder / source, create_model(NAME, NUM_CLASSES))
    expected = _flat(small_import.create_weights())
    assert initial.arrays.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(initial.arrays[path], array)
    assert f"loaded {len(expected)} of {len(expected)} arrays" in initial.report
    assert "not loaded" not in initial.report
    assert str(folder / source) in initial.report


@pytest.mark.parametrize("source", ["run", "weights.pth"])
def test_a_classifier_of_another_class_count_starts_from_scratch(folder, source):
    model = create_model(NAME, 4)
    initial = load_initial_weights(folder / source, model)
    from_scratch = {("params", "decoder", "classifier", leaf) for leaf in ("kernel", "bias")}
    expected = _flat(small_import.create_weights())
    assert expected.keys() - initial.arrays.keys() == from_scratch
    assert re.findall(r"starts from scratch: (.*)", initial.report) == [
        "params/decoder/classifier/bias [4] (there [11], of 11 classes)",
        "params/decoder/classifier/kernel [1, 1, 64, 4] (there [1, 1, 64, 11], of 11 classes)",
    ]
    init = jax.jit(functools.partial(model.init, train=False))
    fresh = init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    filled = flatten_dict(initial.fill(fresh))
    for path, array in flatten_dict(fresh).items():
        source_array = array if path in from_scratch else expected[path]
        np.testing.assert_array_equal(filled[path], source_array)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("run", rf"run is of {NAME}, this run is one of small_decoder14; set --config\.model="),
        (
            "weights.pth",
            r"does not fit small_decoder14: \d+ differences .*; set config\.model",
        ),
    ],
)
def test_another_architecture_is_one_line(folder, source, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_initial_weights(folder / source, create_model("small_decoder14", NUM_CLASSES))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value).replace(str(folder), "")) < 600


def test_what_is_no_source_is_named(tmp_path):
    model = create_model(NAME, NUM_CLASSES)
    with pytest.raises(ValueError, match=r"there is no weights file .*nowhere.*folder of a run"):
        load_initial_weights(tmp_path / "nowhere", model)
    with pytest.raises(ValueError, match=r"holds no run: there is no .*config\.json"):
        load_initial_weights(tmp_path, model)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt \(5 bytes\) is not a PyTorch file"):
        load_initial_weights(tmp_path / "notes.txt", model)


def test_a_search_starts_from_fixed_rates_of_as_many_branches(small_variant):
    def shaped(rates):
        backbone = variants.replace_dilation_rates(small_variant.backbone, rates)
        model = RegSeg(variants.Variant("small_decoder12", backbone, "decoder12"), NUM_CLASSES)
        return {path: np.zeros(shape) for path, shape in initial_weights._shapes(model).items()}

    variant = variants.Variant("small_decoder12", small_variant.backbone, "decoder12")
    model = create_search_model(
        variant, NUM_CLASSES, jnp.float32, method="continuous", num_branches=2, rate=1
    )
    arrays = shaped([[1, 1], [1, 2]])
    initial = initial_weights._select("a run", arrays, NUM_CLASSES, model)
    assert initial.arrays.keys() == arrays.keys()
    assert re.findall(
        r"starts from scratch: params/backbone/(\S+) \[2?\] \(searched", initial.report
    ) == [
        f"{block}/conv2/{name}"
        for block in ("stage16_1", "stage16_2")
        for name in ("dilation_rates", "tap_width")
    ]
    with pytest.raises(ValueError, match=r"a run does not fit: \d+ arrays .*num_branches"):
        initial_weights._select("a run", shaped([[1], [2]]), NUM_CLASSES, model)
