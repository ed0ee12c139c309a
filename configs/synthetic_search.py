"""Searches the dilation rates on drawn street scenes: minutes on a CPU, no data set needed.

    python -m regseg_jax.main --config=configs/synthetic_search.py --workdir=runs/search

leaves `runs/search/found.json`, trained by `--config=configs/synthetic.py
--config.model=runs/search/found.json`, and `runs/search/pictures/rates.png`.
"""

from ml_collections import ConfigDict

from regseg_jax.runtime.recipes import load_recipe


def get_config() -> ConfigDict:
    """800 steps. Scenes are 6 x 8 at 1/16, where a dilation rate of 8 sees only padding."""
    config = load_recipe("synthetic")
    config.data.synthetic_train_examples = 1600
    config.search.enabled = True
    config.search.warmup_steps = 60
    config.search.max_rate = 8
    config.search.tap_width = 3.0
    return config
