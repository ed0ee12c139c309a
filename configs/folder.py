"""A data set of your own: copy this file and edit it; see docs/own_data.md.

    python -m regseg_jax.main --config=configs/folder.py --workdir=runs/shapes \
        --config.data.data_dir=shapes

As it stands it fits the page's example, drawn shapes in three sizes: 200 steps.
"""

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config


def get_config() -> ConfigDict:
    """Four classes; 25 epochs of 8 steps."""
    config = create_default_config()
    config.data.source = "folder"

    # Where the files are, inside data_dir.
    config.folder.image_dir = "{split}/images"
    config.folder.label_dir = "{split}/labels"
    config.folder.label_format = "ids"  # one number per pixel; "colors": one RGB colour per pixel
    # Training id (from 0, no gap), name, colour in pictures, value in the label files.
    config.folder.classes = (
        (0, "ground", (90, 90, 90), 0),
        (1, "disc", (220, 60, 60), 10),
        (2, "square", (60, 180, 75), 20),
        (3, "triangle", (60, 100, 220), 30),
    )
    config.folder.ignored_label_ids = (255,)  # allowed values that are not trained on

    config.model = "exp48_decoder26"
    config.global_batch_size = 8
    config.num_epochs = 25
    config.data.num_workers = 0
    config.optimizer.warmup_steps = 20  # about a tenth of the steps
    config.augment.crop_size = (96, 96)
    config.augment.min_shorter_side = 72  # about half to twice the images' shorter side
    config.augment.max_shorter_side = 160
    config.eval.batch_size = 1  # images of different sizes are not batched
    return config
