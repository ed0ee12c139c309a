"""Searches the dilation rates on half-size CamVid (SegNet's edition, 180 x 240 crops).

    python -m regseg_jax.main --config=configs/camvid_search.py --workdir=SEARCH \
        --config.data.data_dir=CAMVID
    python -m regseg_jax.main --config=configs/camvid_half.py --workdir=RUN \
        --config.data.data_dir=CAMVID --config.model=SEARCH/found.json
"""

from ml_collections import ConfigDict

from regseg_jax.runtime.recipes import load_recipe


def get_config() -> ConfigDict:
    """30 epochs of 45 steps, like the run that trains the result; the search starts after 3."""
    config = load_recipe("camvid_half")
    config.search.enabled = True
    config.search.warmup_steps = 135
    config.search.max_rate = 12  # maps at 1/16 are 12 x 15
    return config
