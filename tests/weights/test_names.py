import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from golden import author

from regseg_jax.models.regseg import RegSeg, create_model
from regseg_jax.models.variants import DECODERS, Variant
from regseg_jax.weights.names import find_matching_variants, from_torch, to_torch

GOLDEN_SHAPES = author.load_shapes()


def _shapes(model):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)


def _fill(shapes, seed=0):
    """Random values of their shapes, so that no two entries are equal."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)


def _assert_equal(actual, expected):
    actual, expected = flatten_dict(actual), flatten_dict(expected)
    assert set(actual) == set(expected)
    for path, value in expected.items():
        assert actual[path].dtype == value.dtype, path
        np.testing.assert_array_equal(actual[path], value, err_msg=str(path))


@pytest.fixture(scope="module")
def small_variables(small_model):
    return _fill(_shapes(small_model))


@pytest.mark.parametrize("name", GOLDEN_SHAPES)
def test_the_authors_state_dicts_come_back_unchanged(name):
    rng = np.random.default_rng(0)
    state_dict = {
        key: np.zeros(shape, np.int64)
        if key.endswith("num_batches_tracked")
        else rng.random(shape, np.float32)
        for key, shape in GOLDEN_SHAPES[name].items()
    }
    model = create_model(name, num_classes=19)
    variables = from_torch(state_dict)  # finds out by itself what model it is
    _assert_equal(to_torch(variables), state_dict)
    _assert_equal(from_torch(state_dict, model), variables)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_comes_back_unchanged(decoder, small_variant):
    model = RegSeg(Variant(f"small_{decoder}", small_variant.backbone, decoder), num_classes=5)
    variables = _fill(_shapes(model))
    state_dict = to_torch(variables)
    assert all("/" not in name for name in state_dict)
    _assert_equal(from_torch(state_dict, model), variables)


def test_names_and_axes(small_variables):
    state_dict = to_torch(small_variables)
    params, stats = small_variables["params"], small_variables["batch_stats"]
    branches = params["backbone"]["stage16_1"]["conv2"]
    pairs = {
        "stem.conv.weight": params["stem"]["conv"]["kernel"],
        "body.stage4.conv2.weight": params["backbone"]["stage4"]["conv2"]["kernel"],
        "body.stage16.1.conv2.convs.1.weight": branches["convs_1"]["kernel"],
        "decoder.classifier.weight": params["decoder"]["classifier"]["kernel"],
    }
    for name, kernel in pairs.items():
        np.testing.assert_array_equal(state_dict[name], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state_dict["stem.bn.weight"], params["stem"]["bn"]["scale"])
    np.testing.assert_array_equal(state_dict["stem.bn.running_var"], stats["stem"]["bn"]["var"])


def test_the_counters_are_written_and_not_read(small_model, small_variables):
    state_dict = to_torch(small_variables, num_batches_tracked=7)
    counters = {n: v for n, v in state_dict.items() if n.endswith(".num_batches_tracked")}
    assert len(counters) == sum(name.endswith(".running_var") for name in state_dict) > 0
    assert all(v.shape == () and v.dtype == np.int64 and v == 7 for v in counters.values())
    without = {name: value for name, value in state_dict.items() if name not in counters}
    _assert_equal(from_torch(without, small_model), small_variables)
    assert to_torch(small_variables)["stem.bn.num_batches_tracked"] == 0


def test_torch_tensors_and_other_dtypes_are_taken(small_model, small_variables):
    state_dict = {n: torch.tensor(v).double() for n, v in to_torch(small_variables).items()}
    variables = from_torch(state_dict, small_model)
    expected = jax.tree.map(lambda a: a.astype(np.float64), small_variables)
    _assert_equal(variables, expected)


def test_what_does_not_fit_is_in_one_message(small_model, small_variables):
    state_dict = to_torch(small_variables)
    for missing in ("stem.conv.weight", "body.stage8.bn2.running_mean"):
        del state_dict[missing]
    state_dict["body.stage8.conv9.weight"] = np.zeros((2, 2, 1, 1))
    state_dict["module.extra"] = np.zeros(3)
    state_dict["decoder.classifier.weight"] = np.zeros((19, 64, 1, 1))
    state_dict["stem.bn.bias"] = np.zeros(())
    with pytest.raises(ValueError, match="do not fit small_decoder26: 6 differences") as error:
        from_torch(state_dict, small_model)
    for problem in (
        "missing stem.conv.weight [32, 3, 3, 3]",
        "missing body.stage8.bn2.running_mean [32]",
        "unexpected body.stage8.conv9.weight",
        "unexpected module.extra",
        "decoder.classifier.weight has shape [19, 64, 1, 1], not [11, 64, 1, 1]",
        "stem.bn.bias has shape [], not [32]",
    ):
        assert problem in str(error.value)
    assert str(error.value).count(";") == 5  # these six and no other


def test_a_damaged_state_dict_is_held_against_the_nearest_model():
    model = create_model("exp43_decoder12", num_classes=7)
    state_dict = to_torch(_fill(_shapes(model)))
    _assert_equal(to_torch(from_torch(state_dict)), state_dict)
    del state_dict["body.stage16.3.conv1.weight"]
    state_dict["decoder.head8.conv.weight"] = np.zeros((128, 64, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"_decoder12: .*not \[128, 128, 1, 1\]") as error:
        from_torch(state_dict)
    assert "missing body.stage16.3.conv1.weight [256, 256, 1, 1]" in str(error.value)
    assert str(error.value).count(";") == 1


def test_of_a_state_dict_of_something_else_ten_names_are_named():
    state_dict = {f"fc.{i}.weight": np.zeros((3, 4)) for i in range(700)}
    with pytest.raises(ValueError, match=r"\d+ differences \(unexpected fc\.0\.weight;") as error:
        from_torch(state_dict)
    assert str(error.value).count("unexpected fc") == 10
    assert len(str(error.value)) < 500


def test_variants_that_differ_in_dilation_rates_only():
    def find(name):
        return find_matching_variants(to_torch(_fill(_shapes(create_model(name, 5)))))

    shapes_of_exp48 = [
        f"{name}_decoder26" for name in ("exp43", "exp46", "exp47", "exp48", "exp52")
    ]
    assert find("exp48_decoder26") == shapes_of_exp48
    assert find("exp53_decoder29") == ["exp53_decoder29"]


def test_a_leaf_without_counterpart_raises(small_variables):
    variables = {**small_variables, "params": {"dense": {"kernel": np.zeros((3, 4))}}}
    with pytest.raises(ValueError, match=r"params/dense/kernel of shape \[3, 4\]"):
        to_torch(variables)
