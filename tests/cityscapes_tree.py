"""Writes drawn street scenes in Cityscapes' own layout: real file names, raw label ids."""

import pathlib

import numpy as np
from PIL import Image

from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.data.synthetic.scenes import draw_scene

# The classes of the drawn scenes, in Cityscapes' raw label ids.
LABEL_IDS = {
    **{"building": 11, "tree": 21, "sky": 23, "car": 26, "sign": 20, "road": 7, "pedestrian": 24},
    **{"fence": 13, "pole": 17, "sidewalk": 8, "bicyclist": 33},
}
EGO_VEHICLE = 1
CITIES = {"train": ("aachen", "zurich"), "val": ("lindau",), "test": ("berlin",)}


def write_cityscapes(
    root: pathlib.Path, *, num_examples: dict[str, int], height: int, width: int, drawn: int = 1
) -> pathlib.Path:
    """Writes `num_examples[split]` pairs for each split, over the split's cities in turn.

    Args:
      root: the folder to hold `leftImg8bit/` and `gtFine/`.
      num_examples: by split; `test` gets images only.
      height: of the files, in pixels.
      width: of the files, in pixels.
      drawn: scenes are drawn at size / drawn and enlarged, which is faster.
    """
    lookup = np.full(256, EGO_VEHICLE, np.uint8)
    lookup[: CAMVID.num_classes] = [LABEL_IDS[name] for name in CAMVID.class_names]
    assert lookup[IGNORE_LABEL] == EGO_VEHICLE
    index = 0
    for split, count in num_examples.items():
        for i in range(count):
            city = CITIES[split][i % len(CITIES[split])]
            stem = f"{city}_{i:06d}_000019"
            image, label = draw_scene(index, height=height // drawn, width=width // drawn)
            index += 1
            picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
            raw = Image.fromarray(lookup[label]).resize((width, height), Image.Resampling.NEAREST)
            _save(picture, root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            if split != "test":
                _save(raw, root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png")
    return root


def _save(image: Image.Image, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
