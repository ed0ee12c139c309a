"""docs/own_data.md, followed literally in a fresh folder."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]


def _blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "own_data.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in blocks if name == language]


@pytest.mark.slow
def test_the_page_as_it_stands(tmp_path):
    (script,) = _blocks("python")
    (tmp_path / "make_shapes.py").write_text(script)
    for name in ("regseg_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = [
        line for block in _blocks("") for line in block.splitlines() if line.startswith("python ")
    ]
    assert len(commands) == 5
    environment = os.environ | {
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    }
    environment.pop("XLA_FLAGS")  # one device
    outputs = [
        subprocess.run(
            command.split(),
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for command in commands
    ]
    counts = json.loads((tmp_path / "described/data.json").read_text())
    assert counts["images"] == {"train": 64, "val": 12}
    assert counts["problems"] == counts["warnings"] == []
    mean_iou = float(re.search(r"mean IoU +([\d.]+)", outputs[3])[1])
    assert mean_iou > 50  # 25 for ground alone, at most
    for path in (tmp_path / "shapes/val/images").iterdir():
        with (
            Image.open(tmp_path / "predictions" / path.name) as prediction,
            Image.open(path) as image,
        ):
            assert prediction.size == image.size
