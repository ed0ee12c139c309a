"""CamVid at half size (SegNet's edition, 180 x 240 crops): small enough for a CPU.

    python -m regseg_jax.main --config=configs/camvid_half.py --workdir=runs/camvid_half \
        --config.data.data_dir=CAMVID

The author's model and recipe, trained like this in PyTorch, scored 53.1 and 52.2 % mean IoU on the
validation split (seeds 0 and 1), in 30 epochs of about 36 s on 2 CPU cores.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config


def get_config() -> ConfigDict:
    """30 epochs of 45 steps on the 367 training images."""
    config = create_default_config()
    config.num_epochs = 30
    config.global_batch_size = 8
    config.log_every_steps = 15
    config.checkpoint_every_steps = 90
    config.data.num_workers = 0  # decoding is a small part of a CPU's step
    config.optimizer.warmup_steps = 135  # a tenth of the steps
    config.augment.crop_size = (180, 240)
    config.augment.min_shorter_side = 90
    config.augment.max_shorter_side = 360
    config.eval.image_size = (180, 240)
    return config
