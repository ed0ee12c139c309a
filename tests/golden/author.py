"""The author's numbers, and the rule for the weights and inputs with which they were computed.

No weights are stored: `fill` gives every tensor of a model its values from its name alone, and
`create_inputs` draws the images. See README.md next to this file.
"""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
VARIANTS = (
    "exp48_decoder26",
    "exp53_decoder29",
    "exp43_decoder14",
    "regnety600mf_decoder14",
    "exp50_decoder4",
)


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a tensor of a state dict, float32 except for counters.

    Standard normal numbers, of a generator that is seeded with the CRC-32 of the name, then
    scaled by what the tensor is: kernels to the standard deviation sqrt(2 / fan_in), batch norm's
    scales to 1 + 0.1 x, its running variances to exp(0.1 x), everything else to 0.1 x.
    """
    leaf = name.split(".")[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
        fan_in = np.prod(shape[1:])
        return x * np.sqrt(2.0 / fan_in).astype(np.float32)
    match leaf:
        case "weight":
            return 1.0 + 0.1 * x
        case "running_var":
            return np.exp(0.1 * x)
    return 0.1 * x


def create_inputs() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images by size and the labels of the odd ones.

    Returns:
      {"even": f32[1, 3, 256, 512], "odd": f32[2, 3, 235, 341]}, already normalised, and labels
      uint8[2, 235, 341] below 19, of which a tenth are 255, ignored.
    """
    rng = np.random.default_rng(0)
    sizes = {"even": (1, 3, 256, 512), "odd": (2, 3, 235, 341)}
    images = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    labels = rng.integers(0, 19, (2, 235, 341)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    return images, labels


def load_shapes() -> dict[str, dict[str, list[int]]]:
    """The author's state dicts: variant -> name -> shape, in order."""
    return json.loads((FOLDER / "state_dicts.json").read_text())


def create_state_dict(variant: str) -> dict[str, np.ndarray]:
    """The weights and statistics of a variant with 19 classes, in PyTorch's layout."""
    return {name: fill(name, tuple(shape)) for name, shape in load_shapes()[variant].items()}


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file: a variant's, or `training`'s."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def summarize_logits(every_fourth: np.ndarray) -> dict[str, np.ndarray]:
    """What the golden set keeps of the logits on every 4th row and column.

    Args:
      every_fourth: [B, C, H, W].

    Returns:
      `grid`: f32[B, C, h, w], the logits on every 20th row and column of the image, and over all
      of every_fourth `mean` and `mean_square` of each image and class, f64[B, C].
    """
    logits = every_fourth.astype(np.float64)
    return {
        "grid": every_fourth[:, :, ::5, ::5].astype(np.float32),
        "mean": logits.mean((2, 3)),
        "mean_square": (logits**2).mean((2, 3)),
    }


def compute_logit_error(logits: np.ndarray, expected: dict[str, np.ndarray], key: str) -> float:
    """The largest difference from the author's logits, in their standard deviations.

    Args:
      logits: [B, C, H, W] at full size, in PyTorch's layout.
      expected: of `load`.
      key: `eval_logits_even`, `eval_logits_odd` or `train_logits_odd`.
    """
    summary = summarize_logits(np.asarray(logits)[:, :, ::4, ::4])
    grid, mean, mean_square = (expected[f"{key}_{name}"] for name in summary)
    scale = grid.std()
    rms = np.sqrt(summary["mean_square"]) - np.sqrt(mean_square)
    differences = (summary["grid"] - grid, summary["mean"] - mean, rms)
    return max(float(np.abs(difference).max()) for difference in differences) / scale
