"""Images too large for the network, predicted in overlapping tiles.

If one tile covers the image, the prediction is the whole image's. With more tiles it is the whole
image's up to rounding if all of these hold: the sides of image and tiles are multiples of the
network's stride, 16; the input is at scale 1; the network has no global mean; and it sees no
further than a third of the overlap, so that its field of view is at most two thirds of the overlap.
RegSeg does have global means, in squeeze-and-excite, and sees 1,900 pixels to each side, so its
tiles' predictions differ from the whole image's: choose tiles as large as memory allows.
`tests/prediction/test_tiles.py` tests both.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

STRIDE = 16  # of every network here; tiles begin at multiples of it, as the network's features do


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Attributes:
      height: of a tile, in pixels.
      width: of a tile.
      overlap: of neighbouring tiles, at least; in its outer third a tile has weight 0.
    """

    height: int = 2048
    width: int = 2048
    overlap: int = 512

    def __post_init__(self) -> None:
        """Raises ValueError if a side is not a multiple of the stride, or the overlap too large."""
        if min(self.height, self.width) <= 0 or self.height % STRIDE or self.width % STRIDE:
            raise ValueError(
                f"--tile is {self.height},{self.width}; use HEIGHT,WIDTH, multiples of {STRIDE} "
                "pixels"
            )
        if not 0 <= self.overlap <= min(self.height, self.width) - STRIDE:
            raise ValueError(
                f"--overlap is {self.overlap}; use 0 to {min(self.height, self.width) - STRIDE} "
                f"pixels for tiles of {self.height},{self.width}"
            )

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether an image of height and width fits into one tile."""
        return size[0] <= self.height and size[1] <= self.width


def parse_tiling(sides: Sequence[str] | None, overlap: int | None = None) -> Tiling | None:
    """The tiling of the flags `--tile=HEIGHT,WIDTH --overlap=PIXELS`; None without `--tile`.

    The overlap is a quarter of the shorter side unless given.

    Raises:
      ValueError: if a flag is malformed.
    """
    if not sides:
        if overlap is not None:
            raise ValueError("--overlap needs tiles; add --tile=HEIGHT,WIDTH")
        return None
    try:
        height, width = map(int, sides)
    except ValueError:
        raise ValueError(f"--tile is {','.join(sides)}; use HEIGHT,WIDTH in pixels") from None
    return Tiling(height, width, min(height, width) // 4 if overlap is None else overlap)


def predict_in_tiles(
    score_tile: Callable[[np.ndarray], np.ndarray], image: np.ndarray, tiling: Tiling
) -> np.ndarray:
    """The class of each pixel, from scores that are blended in the overlaps.

    Only the scores of one row of tiles are in memory.

    Args:
      score_tile: uint8 [h, w, 3] to float [h, w, num_classes], higher for likelier classes.
      image: uint8 [H, W, 3].
      tiling: how it is cut.

    Returns:
      uint8 [H, W], training ids.
    """
    height, width = image.shape[:2]
    tops, tile_height = _place(height, tiling.height, tiling.overlap)
    lefts, tile_width = _place(width, tiling.width, tiling.overlap)
    prediction = np.empty((height, width), np.uint8)
    sums = None  # of weighted scores, [tile_height, W, num_classes]: dividing changes no argmax
    for top, next_top in itertools.pairwise([*tops, height]):
        for left in lefts:
            scores = np.asarray(
                score_tile(image[top : top + tile_height, left : left + tile_width])
            )
            if sums is None:
                sums = np.zeros((tile_height, width, scores.shape[-1]), np.float32)
            rows = _weigh(top, tile_height, height, tiling.overlap)
            columns = _weigh(left, tile_width, width, tiling.overlap)
            weights = (rows[:, None] * columns)[..., None]
            sums[:, left : left + tile_width] += weights * scores
        done = next_top - top
        prediction[top:next_top] = sums[:done].argmax(-1)
        sums = np.concatenate([sums[done:], np.zeros_like(sums[:done])])
    return prediction


def _place(length: int, tile: int, overlap: int) -> tuple[list[int], int]:
    """The starts of the tiles along one side, and their length; the last ends with the image."""
    if length <= tile:
        return [0], length
    step = max((tile - overlap) // STRIDE, 1) * STRIDE
    return [*range(0, length - tile, step), length - tile], tile


def _weigh(start: int, tile: int, length: int, overlap: int) -> np.ndarray:
    """The weight of each row or column of a tile: 0 near a seam, 1 at the image's border."""
    third = overlap / 3
    position = np.arange(tile) + 0.5
    weights = np.ones(tile, np.float32)
    for distance, is_seam in ((position, start > 0), (tile - position, start + tile < length)):
        if is_seam and overlap:
            weights *= np.clip((distance - third) / third, 0, 1)
    return weights
