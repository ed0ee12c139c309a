"""CamVid, 11 classes, from scratch, in either edition.

The original, 720 x 960 (`train/NAME.png`, `train_labels/NAME_L.png`):

    python -m regseg_jax.main --config=configs/camvid_scratch.py --workdir=runs/camvid \
        --config.data.data_dir=CAMVID

SegNet's, 360 x 480 (`train/`, `trainannot/`), with scales and crop halved:

    python -m regseg_jax.main --config=configs/camvid_scratch.py:segnet --workdir=runs/camvid \
        --config.data.data_dir=CAMVID

Trains on the train split, scores on val; the usual protocol is
`--config.data.train_split=trainval --config.data.eval_split=test`. Without pretraining, others
report at 360 x 480 66.9 (FC-DenseNet103, on train) and 69.1 % (LMFFNet-3-8, on trainval); the two
editions' scores are not comparable. Not run to the end here, so there are no
hours and no score of this project's own.

Batch, epochs, warm-up, scales and crop are the paper's for CamVid (configs/camvid.py); the learning
rate is its 0.05 for training from scratch on Cityscapes.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config

# Edition: crop height, width, and the shorter side's range, in pixels.
_SIZES = {"original": (720, 960, 288, 1152), "segnet": (360, 480, 180, 720)}


def get_config(edition: str = "original") -> ConfigDict:
    """200 epochs at batch 12, from scratch."""
    if edition not in _SIZES:
        raise ValueError(f"edition {edition!r} is none of {', '.join(_SIZES)}")
    height, width, min_shorter_side, max_shorter_side = _SIZES[edition]
    config = create_default_config()
    config.num_epochs = 200
    config.global_batch_size = 12
    config.optimizer.warmup_steps = 1000
    config.augment.crop_size = (height, width)
    config.augment.min_shorter_side = min_shorter_side
    config.augment.max_shorter_side = max_shorter_side
    config.eval.batch_size = 4
    return config
