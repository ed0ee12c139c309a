"""The three runs that made the weights `camvid`, which ship with the package: CamVid, 360 x 480.

    python -m regseg_jax.main --config=configs/camvid_weights.py --workdir=FIRST \
        --config.data.data_dir=CAMVID
    python -m regseg_jax.main --config=configs/camvid_weights.py:second --workdir=SECOND \
        --config.data.data_dir=CAMVID --config.init_from=FIRST
    python -m regseg_jax.main --config=configs/camvid_weights.py:third --workdir=THIRD \
        --config.data.data_dir=CAMVID --config.init_from=SECOND

130 epochs in all on the 367 training images of SegNet's edition, on 2 CPU cores: 60 on crops of
256 x 336, which cost half of the time, 40 on whole images with class weights for what is rare
and thin, and 30 more with RandAugment, for other light than the training images have. Hours and
scores are in the model card, regseg_jax/weights/camvid.md.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config


def get_config(run: str = "first") -> ConfigDict:
    """The first, the second or the third run, all at batch 8."""
    config = create_default_config()
    config.global_batch_size = 8
    config.data.num_workers = 0  # decoding is a small part of a CPU's step
    config.checkpoint_every_steps = 90
    config.eval.batch_size = 4
    if run == "first":
        config.num_epochs = 60
        config.ema_decay = 0.999
        config.optimizer.warmup_steps = 270
        config.augment.crop_size = (256, 336)
        config.augment.min_shorter_side = 180
        config.augment.max_shorter_side = 540
        config.eval.every_epochs = 6
    elif run in ("second", "third"):
        config.num_epochs, config.eval.every_epochs = (40, 4) if run == "second" else (30, 3)
        config.ema_decay = 0.998
        config.optimizer.learning_rate = 0.02
        config.optimizer.warmup_steps = 90
        config.augment.crop_size = (360, 480)
        config.augment.min_shorter_side = 270
        config.augment.max_shorter_side = 720
        config.augment.rand_augment_num_ops = 0 if run == "second" else 2
        config.loss.class_weights = "inverse_log"
    else:
        raise ValueError(f"run {run!r} is none of first, second and third")
    return config
