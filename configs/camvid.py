"""CamVid at 720 x 960, 11 classes, fine-tuned from a Cityscapes run: the paper's protocol.

    python -m regseg_jax.main --config=configs/camvid.py --workdir=runs/camvid \
        --config.data.data_dir=CAMVID --config.init_from=RUN

`CAMVID` holds the original edition (`train/NAME.png`, `train_labels/NAME_L.png`, the same for val
and test). Trains on trainval, scores on test. The author's five runs scored 80.86, 80.93, 81.03,
80.84 and 80.87 % mean IoU from his Cityscapes weights; not run here, so no hours are given.
Without a Cityscapes run, use configs/camvid_scratch.py.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config


def get_config() -> ConfigDict:
    """200 epochs on the 468 images of trainval."""
    config = create_default_config()
    config.precision = "float16"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    # The paper's figures for CamVid: all that differs from Cityscapes.
    config.num_epochs = 200
    config.global_batch_size = 12
    config.optimizer.learning_rate = 0.005  # a tenth, as the weights are trained already
    config.optimizer.warmup_steps = 1000
    config.augment.crop_size = (720, 960)  # whole images; padding comes before the crop
    config.augment.min_shorter_side = 288
    config.augment.max_shorter_side = 1152
    config.eval.batch_size = 4
    return config
