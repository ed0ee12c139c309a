import numpy as np
import pytest
import small_import
import torch
from PIL import Image

from regseg_jax.benchmark import formats
from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.export import torch_model
from regseg_jax.export.forms import FORMS, REFERENCE, check_forms
from regseg_jax.models.regseg import create_model
from regseg_jax.runs.trained import Trained
from regseg_jax.training.evaluation import EvalConfig, create_preprocess_fn
from regseg_jax.weights.names import from_torch

SIZE = (33, 48)


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def state_dict(small_backbone) -> dict[str, torch.Tensor]:
    return small_import.create_weights()


@pytest.fixture(scope="module")
def weights(state_dict) -> Trained:
    arrays = {name: tensor.numpy() for name, tensor in state_dict.items()}
    model = create_model(small_import.NAME, small_import.NUM_CLASSES)
    return Trained("a", model, from_torch(arrays, model), None, 0, {}, CAMVID, EvalConfig())


@pytest.fixture(scope="module")
def source(state_dict) -> list[dict]:
    """Three images whose labels are PyTorch's predictions; of the last one, half of them wrong."""
    network = torch_model.create_torch_model(small_import.NAME, small_import.NUM_CLASSES).eval()
    torch_model.load_weights(network, state_dict)
    examples = []
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)
        inputs = np.asarray(create_preprocess_fn(EvalConfig())(image[None]))
        with torch.inference_mode():
            logits = network(torch.tensor(inputs.transpose(0, 3, 1, 2)))
        label = logits.argmax(1)[0].numpy().astype(np.uint8)
        label[:5] = IGNORE_LABEL
        examples.append({"image": image, "label": label, "name": f"street_{i}"})
    wrong = examples[-1]["label"][:, : SIZE[1] // 2]
    wrong[wrong != IGNORE_LABEL] = (wrong[wrong != IGNORE_LABEL] + 1) % CAMVID.num_classes
    return examples


def test_forms_are_scored_and_compared_with_float32(weights, source):
    forms = ["PyTorch", "JAX bfloat16"]
    rows, images = formats.compare(weights, source, [0, 1], forms)
    assert [row["form"] for row in rows] == [REFERENCE, *forms]
    assert [row["mean_iou"] for row in rows[:2]] == pytest.approx([1, 1], abs=1e-2)
    assert [row["differing_pixels"] for row in rows[:2]] == pytest.approx([0, 0], abs=1e-3)
    assert 0 < rows[2]["differing_pixels"] < 0.5
    assert rows[2]["mean_iou"] < rows[0]["mean_iou"]
    assert sorted(image.name for image in images) == ["street_0", "street_1"]


def test_the_page_shows_the_worst_images_first(weights, source, tmp_path):
    rows, images = formats.compare(weights, source, range(3), [])
    assert images[0].name == "street_2"
    assert images[0].scores.mean_iou < rows[0]["mean_iou"] < images[1].scores.mean_iou
    page = formats.write_page(tmp_path / "page", images[:2], source, CAMVID)
    headings = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    percent = 100 * images[0].scores.mean_iou
    assert headings[0] == f"## 1. street_2: {percent:.2f} %"
    assert headings[1].startswith("## 2. street_")
    for rank in (1, 2):
        assert f"(worst_{rank:02d}.png)" in page.read_text()
        with Image.open(page.parent / f"worst_{rank:02d}.png") as picture:
            assert picture.width > 4 * SIZE[1]


def test_unknown_forms_and_missing_packages_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="there is no form 'TensorRT'; the forms are: JAX float32"):
        check_forms(["TensorRT"])
    monkeypatch.setitem(FORMS, "ONNX Runtime", ("no_such_package",))
    with pytest.raises(ValueError, match="the form ONNX Runtime needs no_such_package"):
        check_forms(["PyTorch", "ONNX Runtime"])
