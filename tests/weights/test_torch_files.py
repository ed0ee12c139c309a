import os
import re

import pytest
import torch

from regseg_jax.weights.torch_files import load_state_dict_file

KERNEL = torch.arange(4.0)
WEIGHTS = {"stem.conv.weight": KERNEL, "stem.bn.num_batches_tracked": torch.tensor(7)}


class RunsCode:
    def __reduce__(self):
        return os.system, ("true",)


def save(content, folder):
    torch.save(content, folder / "a.pth")
    return folder / "a.pth"


@pytest.mark.parametrize(
    "wrapper", ["model", "state_dict", "model_state_dict", "model_state", "weights", "net", "ema"]
)
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.", "module._orig_mod."])
def test_wrappers_and_prefixes_in_training_states(wrapper, prefix, tmp_path):
    state_dict = {prefix + name: value for name, value in WEIGHTS.items()}
    optimizer = {"state": {0: {"momentum_buffer": KERNEL}}, "param_groups": [{"lr": 0.1}]}
    file = load_state_dict_file(
        save({"epoch": 3, "optimizer": optimizer, wrapper: state_dict}, tmp_path)
    )
    assert file.tensors.keys() == WEIGHTS.keys()
    assert file.tensors["stem.conv.weight"].equal(KERNEL)
    assert file.metadata == {}
    assert f"under {wrapper!r}, without the prefix {prefix!r}" in file.report
    assert "not read: 'epoch', 'optimizer'" in file.report


def test_a_wrapper_inside_another(tmp_path):
    file = load_state_dict_file(save({"model": {"state_dict": WEIGHTS, "epoch": 1}}, tmp_path))
    assert file.tensors.keys() == WEIGHTS.keys()
    assert "under 'model.state_dict'" in file.report


def test_the_trained_weights_come_before_their_average(tmp_path):
    average = {name: value + 1 for name, value in WEIGHTS.items()}
    file = load_state_dict_file(save({"ema": average, "state_dict": WEIGHTS}, tmp_path))
    assert file.tensors["stem.conv.weight"].equal(KERNEL)
    assert "not read: 'ema'" in file.report


def test_parameters_and_what_stands_beside_the_model(tmp_path):
    content = {"module.stem.conv.weight": torch.nn.Parameter(KERNEL), "n_averaged": torch.tensor(3)}
    file = load_state_dict_file(save(content, tmp_path))
    assert file.tensors.keys() == {"stem.conv.weight"}
    assert not file.tensors["stem.conv.weight"].requires_grad
    assert "not read: 'n_averaged'" in file.report


def test_two_models_in_one_state_dict(tmp_path):
    content = {"a.stem.conv.weight": KERNEL, "b.stem.conv.weight": KERNEL}
    with pytest.raises(ValueError, match=r"a\.pth: .*2 models.*\['a\.', 'b\.'\]"):
        load_state_dict_file(save(content, tmp_path))


@pytest.mark.parametrize("fraction", [0.5, 0.98])
def test_a_file_that_is_cut_off_is_named_with_its_size(fraction, tmp_path):
    path = save({"stem.conv.weight": torch.zeros(50_000)}, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    size = f"{int(fraction * len(content)):,} bytes"
    with pytest.raises(ValueError, match=rf"a\.pth \({re.escape(size)}\) is .*cut off"):
        load_state_dict_file(path)


@pytest.mark.parametrize("wrap", [dict, lambda weights: {"model": weights, "epoch": 3}])
def test_file_round_trip(wrap, tmp_path):
    path = tmp_path / "weights.pt"
    weights = {"a.weight": torch.arange(3.0), "a.num_batches_tracked": torch.tensor(7)}
    torch.save(wrap(weights), path)
    loaded = load_state_dict_file(path).tensors
    assert list(loaded) == list(weights)
    assert all(loaded[name].equal(tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": RunsCode()}, "Python objects besides tensors"),
        ({"epoch": 3, "best": torch.ones(2)}, "has no state dict"),
        ({}, "has no state dict"),
        ([torch.ones(2)], "has no state dict"),
        ({"model": {"a": torch.ones(2), "b": torch.tensor([1, torch.nan])}}, "NaN .* in b;"),
        ({"a": torch.tensor([torch.inf]), "b": torch.ones(2)}, "infinity in a;"),
    ],
)
def test_bad_content(content, message, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        load_state_dict_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x89PNG\r\n", b"PK\x03\x04 cut off"])
def test_no_pytorch_file(content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pt \(\d+ bytes\) is not a PyTorch file"):
        load_state_dict_file(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_state_dict_file(tmp_path / "weights.pt")
