"""Cityscapes with the larger model, exp53_decoder29 (6.1 M parameters).

    python -m regseg_jax.main --config=configs/cityscapes_large.py \
        --workdir=runs/cityscapes_large --config.data.data_dir=CITYSCAPES

Trains on trainval as configs/cityscapes_trainval.py does: the test server gave the author 79.5 %
mean IoU, and no other score of this model is known. For a validation score add
`--config.data.train_split=train`. Not run here, so no hours are given.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config


def get_config() -> ConfigDict:
    """1000 epochs of 433 steps on 3475 images, crops of 1024 x 1024, bootstrapped loss."""
    config = create_default_config()
    config.model = "exp53_decoder29"
    # As in configs/cityscapes_trainval.py.
    config.data.source = "cityscapes"
    config.precision = "float16"
    config.data.class_uniform_share = 0.5
    config.augment.rand_augment_num_ops = 2  # of seven, at magnitude 0.2
    config.eval.every_epochs = 20
    config.data.train_split = "trainval"
    config.augment.crop_size = (1024, 1024)
    config.loss.name = "bootstrapped_cross_entropy"
    return config
