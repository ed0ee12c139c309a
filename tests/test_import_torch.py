import os
import pathlib

import jax
import numpy as np
import pytest
import small_import
import torch
from PIL import Image
from small_import import NAME, NUM_CLASSES

from regseg_jax.config import create_default_config
from regseg_jax.data import classes
from regseg_jax.data.dataset import CLASS_TABLES
from regseg_jax.export.export import export_run
from regseg_jax.export.torch_model import create_torch_model
from regseg_jax.import_torch import import_torch
from regseg_jax.runs import trained as run
from regseg_jax.runs.predict import Options, predict


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small_backbone) -> pathlib.Path:
    return small_import.create_run(tmp_path_factory.mktemp("imported"))


def test_import_then_export_gives_the_same_file_tensor_by_tensor(workdir, tmp_path):
    export_run(workdir, "torch", tmp_path / "out.pt")
    before = torch.load(workdir.parent / "weights.pth", weights_only=True)
    after = torch.load(tmp_path / "out.pt", weights_only=True)["model"]
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name


def test_counters_that_differ_between_layers_are_kept(tmp_path):
    weights = small_import.create_weights()
    weights["stem.bn.num_batches_tracked"] += 7
    torch.save(weights, tmp_path / "a.pth")
    import_torch(tmp_path / "a.pth", NAME, NUM_CLASSES, tmp_path / "run")
    export_run(tmp_path / "run", "torch", tmp_path / "b.pt")
    exported = torch.load(tmp_path / "b.pt", weights_only=True)["model"]
    assert exported["stem.bn.num_batches_tracked"] == 12
    assert exported["body.stage4.bn1.num_batches_tracked"] == 5


def test_a_file_with_the_state_dict_under_model_is_read(workdir, tmp_path):
    torch.save({"model": small_import.create_weights(), "epoch": 3}, tmp_path / "a.pth")
    import_torch(tmp_path / "a.pth", NAME, NUM_CLASSES, tmp_path / "run")
    ours, bare = run.load_run(tmp_path / "run"), run.load_run(workdir)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, bare.variables)


def test_half_precision_weights_become_float32(tmp_path):
    weights = {k: v.bfloat16() if v.ndim else v for k, v in small_import.create_weights().items()}
    torch.save(weights, tmp_path / "a.pth")
    import_torch(tmp_path / "a.pth", NAME, NUM_CLASSES, tmp_path / "run")
    kernel = run.load_run(tmp_path / "run").variables["params"]["stem"]["conv"]["kernel"]
    expected = weights["stem.conv.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_an_imported_run_predicts_as_pytorch_does(workdir, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    predict(workdir, [tmp_path / "image.png"], tmp_path / "out", Options(train_ids=True))
    ours = np.asarray(Image.open(tmp_path / "out" / "image.png"))

    model = create_torch_model(NAME, NUM_CLASSES).eval()
    model.load_state_dict(torch.load(workdir.parent / "weights.pth", weights_only=True))
    images = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        theirs = model(torch.tensor(images, dtype=torch.float32).permute(2, 0, 1)[None]).argmax(1)
    assert len(np.unique(ours)) > 3
    assert (ours == theirs[0].numpy()).mean() > 0.999  # ties


def test_the_config_is_the_given_one_with_the_model(tmp_path):
    torch.save(small_import.create_weights(), tmp_path / "a.pth")
    config = create_default_config()
    config.data.source = "synthetic"
    config.precision = "float16"  # the loss scale is part of the state
    config.optimizer.learning_rate = 0.005
    import_torch(tmp_path / "a.pth", NAME, NUM_CLASSES, tmp_path / "run", config)
    trained = run.load_run(tmp_path / "run")
    assert trained.config.model == NAME
    assert trained.config.optimizer.learning_rate == 0.005
    assert trained.step == 0


def test_without_a_config_the_class_count_chooses_the_data_set(workdir, tmp_path, monkeypatch):
    assert run.load_run(workdir).config.data.source == "camvid"
    monkeypatch.setitem(CLASS_TABLES, "cityscapes", classes.CITYSCAPES)
    torch.save(small_import.create_weights(19), tmp_path / "a.pth")
    import_torch(tmp_path / "a.pth", NAME, 19, tmp_path / "run")
    trained = run.load_run(tmp_path / "run")
    assert trained.config.data.source == "cityscapes"
    assert trained.model.num_classes == 19


class _Code:
    def __reduce__(self):
        return os.system, ("touch should_not_exist",)


def _write_text(path: pathlib.Path) -> None:
    path.write_text("no weights")


def _write_code(path: pathlib.Path) -> None:
    torch.save({"model": _Code()}, path)


def _write_other_architecture(path: pathlib.Path) -> None:
    torch.save(small_import.create_weights(name="small_decoder14"), path)


def _write_more_classes(path: pathlib.Path) -> None:
    torch.save(small_import.create_weights(19), path)


def _write_nan(path: pathlib.Path) -> None:
    weights = small_import.create_weights()
    weights["stem.bn.bias"][3] = np.nan
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_write_text, "not a PyTorch file.* write it with torch.save"),
        (_write_code, "could run code.* save the state dict alone"),
        (
            _write_other_architecture,
            f"do not fit {NAME}: 21 differences .*conv4.* Read them as the model",
        ),
        (_write_more_classes, "19 classes, not 11; pass --num_classes=19"),
        (_write_nan, "NaN or infinity in stem.bn.bias;.*use an earlier checkpoint"),
    ],
)
def test_a_bad_file_is_refused_and_nothing_stays_behind(write, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as raised:
        import_torch(tmp_path / "a.pth", NAME, NUM_CLASSES, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"nowhere\.pth"):
        import_torch(tmp_path / "nowhere.pth", NAME, NUM_CLASSES, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_nothing_behind(workdir, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("regseg_jax.training.checkpoints.CheckpointManager.save", fail)
    with pytest.raises(OSError, match="disk is full"):
        import_torch(workdir.parent / "weights.pth", NAME, NUM_CLASSES, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_a_workdir_in_use_is_refused(workdir):
    with pytest.raises(ValueError, match=r"in use; choose one that is new or empty"):
        import_torch(workdir.parent / "weights.pth", NAME, NUM_CLASSES, workdir)


def test_a_class_count_without_names_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match=r"no data set here has 7 classes.*camvid 11.*--config"):
        import_torch(workdir.parent / "weights.pth", NAME, 7, tmp_path / "run")
    with pytest.raises(ValueError, match=r"--num_classes is 7.*camvid, has 11 classes"):
        import_torch(
            workdir.parent / "weights.pth", NAME, 7, tmp_path / "run", create_default_config()
        )
