import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.models import variants
from regseg_jax.models.searched_model import create_search_model, searched_layers
from regseg_jax.runs.found import draw_rates, save_found
from regseg_jax.training.rate_search import ContinuousSearch


@pytest.fixture
def rate_search() -> ContinuousSearch:
    variant = variants.get_variant("exp48_decoder26")
    model = create_search_model(
        variant, 19, jnp.float32, method="continuous", num_branches=2, rate=1
    )
    layers = searched_layers(model.variant.backbone)
    return ContinuousSearch(layers, learning_rate=0.1, warmup_steps=0, num_steps=10)


def test_found_rates_are_a_variant_with_how_they_were_found(rate_search, tmp_path):
    rates = np.linspace((2.6, 1.2), (20.4, 3.7), 13, dtype=np.float32)
    blocks = {
        layer.name: {"conv2": {"dilation_rates": jnp.array(block)}}
        for layer, block in zip(rate_search.layers, rates, strict=True)
    }
    state = types.SimpleNamespace(step=jnp.int32(7), params={"backbone": blocks})
    (tmp_path / "config.json").write_text(json.dumps({"seed": 3, "model": "exp48_decoder26"}))
    lines = []
    for step in (1, 2):
        record = {"step": step}
        for layer, block in zip(rate_search.layers, rates, strict=True):
            record |= {f"search/{layer.name}/rate_{i}": float(r) for i, r in enumerate(block)}
            record[f"search/{layer.name}/bound"] = 3.0
        lines.append(json.dumps(record))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    message = save_found(tmp_path, "exp48_decoder26", rate_search, state)
    path = tmp_path / "found.json"
    variant = variants.get_variant(str(path))
    found = variants.get_dilation_rates(variant.backbone)
    assert found == rate_search.round_rates(rates)
    assert found[0] == (1, 3)
    assert found[-1] == (4, 20)
    how = json.loads(path.read_text())["found"]
    assert (how["seed"], how["step"], how["config"]["model"]) == (3, 7, "exp48_decoder26")
    np.testing.assert_allclose(how["rates"], rates)
    assert f"field of view {how['field_of_view']} pixels" in message
    assert (tmp_path / "pictures" / "rates.png").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("config.json", "found.json", "metrics.jsonl", "pictures")
    ]


def test_rates_are_drawn_a_chart_a_block_with_the_bound(monkeypatch):
    figures = []
    from regseg_jax.runs import found

    render = found.render_figure
    monkeypatch.setattr(found, "render_figure", lambda f: figures.append(f) or render(f))
    records = [
        {"step": 1, "train/loss": 3.0},
        {"step": 2, "search/a/rate_0": 1.0, "search/a/rate_1": 2.0, "search/a/bound": 3.0},
        {"step": 4, "search/a/rate_0": 1.5, "search/a/rate_1": 2.5, "search/a/bound": 3.0},
    ]
    image = draw_rates(records, ["a"])
    assert image.mode == "RGB"
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "bound": [[2, 3], [4, 3]],
        "branch 1": [[2, 1], [4, 1.5]],
        "branch 2": [[2, 2], [4, 2.5]],
    }
