"""Cityscapes, train -> val, 500 epochs: the paper's ablations, of any model.

    python -m regseg_jax.main --config=configs/cityscapes_500.py:exp48_decoder14 \
        --workdir=runs/exp48_decoder14 --config.data.data_dir=CITYSCAPES

185,500 steps. The paper's mean IoU here is the reduced one (without truck, bus and train), in %:

- decoder14 with exp48 75.85, exp43 75.75, exp50 75.69, exp46 75.58, exp49 75.54, exp52 75.53,
  exp47 75.45, exp30 75.44, exp51 75.27, regnety600mf 73.25;
- exp43 with decoder26 75.84, decoder14 75.75, decoder10 75.70, decoder4 75.62, decoder12 74.93,
  lraspp 74.85, SFNetDecoder 74.80, BisenetDecoder 74.68.

Not run here, so no hours are given. See configs/cityscapes.py for the data.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config


def get_config(model: str = "exp48_decoder14") -> ConfigDict:
    """configs/cityscapes.py with half the epochs and the model of the argument."""
    config = create_default_config()
    config.model = model
    config.data.source = "cityscapes"
    config.num_epochs = 500  # of the paper's ablations
    config.precision = "float16"
    config.data.class_uniform_share = 0.5
    config.augment.rand_augment_num_ops = 2  # of seven, at magnitude 0.2
    config.eval.every_epochs = 20
    return config
