import numpy as np
import pytest
import small_import
from PIL import Image

from regseg_jax.export import agreement, torch_format


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, small_backbone):
    return small_import.create_run(tmp_path_factory.mktemp("imported"))


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    return tmp_path / "odd.png"


def test_every_form_agrees_and_a_wrong_one_is_seen(workdir, image, monkeypatch):
    rows = {row["form"]: row for row in agreement.compare(workdir, [image])}
    assert list(rows) == ["PyTorch", "PyTorch, batch norm folded", "ONNX Runtime", "StableHLO"]
    assert all(0 <= row["max_difference_in_deviations"] < 1e-4 for row in rows.values())
    assert all(row["differing_pixels"] < 1e-3 for row in rows.values())

    create = torch_format.create_trained_torch_model

    def create_wrong_model(*arguments):
        model = create(*arguments)
        model.decoder.head16.conv.weight.data *= 2
        return model

    monkeypatch.setattr(torch_format, "create_trained_torch_model", create_wrong_model)
    rows = {row["form"]: row for row in agreement.compare(workdir, [image])}
    assert rows["PyTorch"]["max_difference_in_deviations"] > 0.01
    assert rows["StableHLO"]["max_difference_in_deviations"] < 1e-4
