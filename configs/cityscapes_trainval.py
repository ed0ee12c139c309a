"""Cityscapes, trainval, crops of 1024 x 1024, bootstrapped loss: the paper's test submission.

    python -m regseg_jax.main --config=configs/cityscapes_trainval.py \
        --workdir=runs/cityscapes_trainval --config.data.data_dir=CITYSCAPES

433,000 steps. The test server gave the author 78.3 % mean IoU. The val images are trained on here,
so their score (`val_trained_on/mean_iou`) only shows that training goes well. Not run here, so no
hours are given. See configs/cityscapes.py for the data.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config


def get_config() -> ConfigDict:
    """1000 epochs of 433 steps on 3475 images."""
    config = create_default_config()
    config.model = "exp48_decoder26"
    config.data.source = "cityscapes"
    config.precision = "float16"
    config.data.class_uniform_share = 0.5
    config.augment.rand_augment_num_ops = 2  # of seven, at magnitude 0.2
    config.eval.every_epochs = 20
    # What differs from configs/cityscapes.py (the paper's test submission).
    config.data.train_split = "trainval"
    config.augment.crop_size = (1024, 1024)
    config.loss.name = "bootstrapped_cross_entropy"
    config.loss.threshold = 0.3  # the mean of the pixel losses above it,
    config.loss.min_pixel_share = 1 / 16  # or of this fraction of the largest
    return config
