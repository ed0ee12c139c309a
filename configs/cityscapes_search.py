"""Searches the dilation rates on Cityscapes; not tried so far.

    python -m regseg_jax.main --config=configs/cityscapes_search.py --workdir=SEARCH \
        --config.data.data_dir=CITYSCAPES

`SEARCH/found.json` is then the `--config.model` of a training run.
"""

from ml_collections import ConfigDict

from regseg_jax.runtime.recipes import load_recipe


def get_config() -> ConfigDict:
    """100 epochs, a tenth of the paper's training; dilation rates move after its warm-up."""
    config = load_recipe("cityscapes")
    config.num_epochs = 100
    config.eval.every_epochs = 10
    config.search.enabled = True
    config.search.learning_rate = 0.01  # 37,100 steps
    config.search.warmup_steps = 3000
    return config
