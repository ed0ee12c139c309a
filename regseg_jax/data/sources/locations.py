"""Where data sets are, unless the config says so, and how to get them."""

import os
import pathlib
from typing import NamedTuple

from regseg_jax.data.sources.packed import is_packed


class Location(NamedTuple):
    """Of a data set on disk.

    Attributes:
      variable: the environment variable that names its folder.
      folder: where it is looked for without that.
      contents: it holds at least one of these.
      how_to_get: what to do if there is none.
    """

    variable: str
    folder: str
    contents: tuple[str, ...]
    how_to_get: str


LOCATIONS = {
    "cityscapes": Location(
        "CITYSCAPES_DATASET",  # cityscapesScripts' own
        "data/cityscapes",
        ("leftImg8bit",),
        "download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
        "www.cityscapes-dataset.com, or with cityscapesScripts (pip install cityscapesscripts): "
        "`mkdir -p data/cityscapes; csDownload -d data/cityscapes leftImg8bit_trainvaltest.zip "
        "gtFine_trainvaltest.zip`; unpack both into data/cityscapes, so that it holds "
        "leftImg8bit/ and gtFine/",
    ),
    "camvid": Location(
        "CAMVID_DATASET",
        "data/camvid",
        ("train", "val", "test"),
        "download CamVid (SegNet's edition with train/ and trainannot/, or the original with "
        "train/ and train_labels/) and unpack it into data/camvid",
    ),
}


def find_data_dir(source: str, data_dir: str) -> str:
    """The folder of a data set: the config's, else the environment's, else `data/NAME`.

    Args:
      source: `config.data.source`.
      data_dir: `config.data.data_dir`; "" where the config says nothing.

    Raises:
      ValueError: if the data set is not there; says how to get it.
    """
    location = LOCATIONS.get(source)
    if location is None:
        if not data_dir:
            raise ValueError(
                "config.data.data_dir is empty; add --config.data.data_dir=FOLDER, the folder that "
                f"holds the {source} data set"
            )
        return data_dir
    from_variable = os.environ.get(location.variable, "")
    folder = data_dir or from_variable or location.folder
    if is_packed(folder) or any(pathlib.Path(folder, x).is_dir() for x in location.contents):
        return folder
    origin = "config.data.data_dir" if data_dir else f"${location.variable}"
    if not data_dir and not from_variable:
        origin = f"neither config.data.data_dir nor ${location.variable} is set"
    raise ValueError(
        f"there is no {source} data set in {folder} ({origin}). Name its folder by "
        f"--config.data.data_dir or ${location.variable}; or {location.how_to_get}"
    )
