"""CamVid, 11 classes, in either edition.

The original, 720 x 960 (`train/NAME.png`, `train_labels/NAME_L.png`), with the paper's batch,
epochs, scales and crop (section 4.4):

    python -m regseg_jax.main --config=configs/camvid.py --workdir=runs/camvid \
        --config.data.data_dir=CAMVID

SegNet's, 360 x 480 (`train/`, `trainannot/`), with scales and crop halved:

    python -m regseg_jax.main --config=configs/camvid.py:segnet --workdir=runs/camvid \
        --config.data.data_dir=CAMVID

Trains on the train split, scores on val. The paper's protocol is
`--config.data.train_split=trainval --config.data.eval_split=test`; its 80.9 % start from a
Cityscapes model at a learning rate of 0.005, which this recipe, from scratch, does not reach.
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
