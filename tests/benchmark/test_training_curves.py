import types

import numpy as np
import pytest
import small_import

from regseg_jax.benchmark import training_curves as tc
from regseg_jax.benchmark.pillow_augment import Crop
from regseg_jax.benchmark.training_ways import WAYS, create_draw, train
from regseg_jax.config import create_default_config
from regseg_jax.runs.run import Run


@pytest.fixture
def config(monkeypatch):
    """Three steps of the small backbone, with nothing evaluated."""
    evaluation = types.SimpleNamespace(scores=types.SimpleNamespace(mean_iou=0.5))
    monkeypatch.setattr(Run, "create_evaluator", lambda run: lambda variables: evaluation)
    config = create_default_config()
    config.model, config.num_epochs, config.global_batch_size = small_import.NAME, 1, 8
    config.data.source, config.data.num_workers = "synthetic", 0
    config.data.synthetic_size, config.data.synthetic_train_examples = (48, 64), 24
    config.eval.batch_size, config.augment.crop_size = 8, (32, 48)
    config.augment.min_shorter_side, config.augment.max_shorter_side = 24, 64
    with small_import.small_backbone():
        yield config


def test_at_equal_crops_pytorch_and_jax_have_the_same_curve(config, tmp_path):
    tc.train_missing(config, tmp_path, ["recipe", "threefry"], [3])
    curves = tc.read_curves(tmp_path)
    recipe, threefry = (curves[way][3]["losses"] for way in ("recipe", "threefry"))
    assert len(recipe) == 3
    np.testing.assert_allclose(recipe, threefry, rtol=2e-3)
    # What is there is not trained again.
    tc.train_missing(config, tmp_path, ["recipe", "threefry"], [3])
    (tmp_path / "all_curves.json").write_text("{}")  # of --output
    assert tc.read_curves(tmp_path) == curves
    config.optimizer.learning_rate = 0.04
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate was 0\.05 and is 0\.04"):
        tc.train_missing(config, tmp_path, ["author"], [4])
    assert not (tmp_path / "author_4").exists()


def test_ways_draw_other_crops_from_the_same_ranges(config, tmp_path):
    run = Run.create(config, tmp_path)
    sizes = 100 * [(48, 64)]
    draws = {way: create_draw(run, WAYS[way])(2, sizes) for way in WAYS}
    run.close()
    assert draws["recipe"] == draws["threefry"]
    assert len({tuple(draw) for draw in draws.values()}) == len(WAYS) - 1
    for draw in draws.values():
        assert all(isinstance(crop, Crop) for crop in draw)
        shorter = [crop.size[0] for crop in draw]
        assert 24 <= min(shorter) < 30 < 58 < max(shorter) <= 64
        assert 20 < sum(crop.flip for crop in draw) < 80


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("augment.rand_augment_num_ops", 2, "without RandAugment"),
        ("loss.threshold", 0.5, "plain cross-entropy"),
        ("optimizer.momentum", 0.8, "momentum"),
    ],
)
def test_other_recipes_are_refused(config, tmp_path, key, value, message):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", WAYS["recipe"])


def _curve(*epochs: float) -> dict:
    return {"losses": np.repeat(epochs, 2).tolist(), "steps_per_epoch": 2, "mean_iou": 0.5}


def test_ways_are_compared_with_the_author_by_common_seeds():
    curves = {
        "author": {0: _curve(3, 1), 1: _curve(3, 2), 2: _curve(3, 3)},
        "recipe": {0: _curve(3, 1.5), 1: _curve(3, 2.1), 7: _curve(9, 9)},
        "rbg": {5: _curve(1, 1)},
    }
    rows = tc.compare_ways(curves, lambda curve: tc.summarize_epochs(curve)[-1])
    author, recipe, rbg = rows
    assert author == {"way": "author", "values": {0: 1, 1: 2, 2: 3}, "mean": 2, "std": 1}
    assert recipe["minus_author"].pairs == 2
    assert recipe["minus_author"].difference == pytest.approx(0.3)
    assert (rbg["std"], rbg["minus_author"]) == (None, None)
    assert "+0.3000 +- 0.2000" in tc.format_comparison(rows, 1, 4)
    assert tc.draw_training_curves(curves).size == (800, 500)
