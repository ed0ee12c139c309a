"""Distils the golden set from the full outputs of the author's code.

python tests/golden/distil.py FOLDER

FOLDER holds `NAME.npz` for each variant, with logits on every 4th row and column, `training.npz`
and `state_dicts.json`.
"""

import json
import pathlib
import sys

import numpy as np

# Run as a script, the folder of this file is where modules are looked for, not its parent.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from golden import author


def distil_variant(full: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything but the logits as it is; of them what `author.summarize_logits` keeps."""
    kept = {}
    for key, array in full.items():
        if "logits" in key:
            summary = author.summarize_logits(array)
            kept |= {f"{key}_{name}": value for name, value in summary.items()}
        else:
            kept[key] = array
    return kept


def main(folder: str) -> None:
    """Writes the golden set next to this file."""
    source = pathlib.Path(folder)
    for name in author.VARIANTS:
        with np.load(source / f"{name}.npz") as full:
            np.savez_compressed(author.FOLDER / f"{name}.npz", **distil_variant(dict(full)))
    with np.load(source / "training.npz") as full:
        np.savez_compressed(author.FOLDER / "training.npz", **full)
    shapes = json.loads((source / "state_dicts.json").read_text())
    rows = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in shapes.items()]
    (author.FOLDER / "state_dicts.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
