import functools
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from regseg_jax import describe
from regseg_jax.models import field_of_view, variants
from regseg_jax.models.regseg import create_model

ROOT = pathlib.Path(__file__).parents[1]

NUM_PARAMETERS = {
    "exp48_decoder26": 3_334_951,
    "exp53_decoder29": 6_131_579,
    "exp43_decoder14": 3_368_023,
    "regnety600mf_decoder14": 5_688_995,
    "exp50_decoder4": 3_392_407,
    "exp43_lraspp": 3_247_082,
    "exp43_BisenetDecoder": 3_926_007,
    "exp43_SFNetDecoder": 3_405_079,
    "exp43_decoder10": 3_295_039,
    "exp43_decoder12": 3_236_951,
}


@functools.cache
def count_rows(name, size=(1024, 2048)):
    return describe.count_rows(create_model(name, num_classes=19), size)


@pytest.mark.parametrize(("name", "expected"), NUM_PARAMETERS.items())
def test_number_of_parameters(name, expected):
    assert sum(row.num_parameters for row in count_rows(name)) == expected


def test_operations_of_regseg():
    macs = sum(row.macs for row in count_rows("exp48_decoder26"))
    assert macs == pytest.approx(38.4e9, rel=2e-3)


def test_operations_of_each_kind_of_row():
    macs = {row.name: row.macs for row in count_rows("exp48_decoder26")}
    assert macs["stem"] == 512 * 1024 * 9 * 3 * 32
    # A block of two branches: 1x1, 3x3 in groups of 16, squeeze-and-excite, 1x1; no shortcut.
    assert macs["stage16_7"] == 64 * 128 * 256 * (256 + 9 * 16 + 256) + 2 * 64 * 256
    # A strided block: the first 1x1 runs before the stride, the shortcut's after its pool.
    per_pixel_after = 9 * 16 * 256 + 256 * 256 + 128 * 256
    squeeze_excite = 2 * 32 * 256  # 32 is a quarter of the block's input channels
    assert macs["stage16_0"] == (
        128 * 256 * 128 * 256 + 64 * 128 * per_pixel_after + squeeze_excite
    )
    assert macs["decoder/conv4"] == 256 * 512 * 9 * (64 + 8) * 64


@pytest.mark.parametrize("name", ["exp48_decoder26", "exp53_decoder29", "regnety600mf_decoder14"])
def test_backbone_rows_agree_with_the_traced_field_of_view(name):
    layers = field_of_view.trace_field_of_view(variants.get_variant(name).backbone)
    rows = [row for row in count_rows(name) if not row.name.startswith("decoder/")]
    assert [row.name for row in rows] == [layer.name for layer in layers]
    strides = [1024 // row.output_shape[0] for row in rows]
    assert strides == [layer.stride_after for layer in layers]


def test_last_row_is_the_classifier():
    row = count_rows("exp48_decoder26")[-1]
    assert (row.name, row.output_shape) == ("decoder/classifier", (256, 512, 19))


def test_description():
    model = create_model("exp48_decoder26", num_classes=19)
    lines = describe.format_description(model, (1024, 2048)).splitlines()
    (block,) = [line.split() for line in lines if line.startswith("stage16_7 ")]
    assert block == [
        *("stage16_7", "16", "256", "64", "x", "128", "1,", "14", "41", "1119", "202,560", "1.376")
    ]
    assert "parameters:    3,334,951" in lines
    assert "GMACs:         38.35 (convolutions)" in lines
    assert "field of view: 3807 pixels, 3.72 x 1.86 of the image" in lines
    assert not any("warning" in line for line in lines)


def test_description_of_gaps_odd_sizes_and_pooled_layers():
    model = create_model("exp30_lraspp", num_classes=2)
    lines = describe.format_description(model, (721, 961)).splitlines()
    cells = {line.split()[0]: line.split()[1:6] for line in lines if " x " in line}
    assert cells["stage4"] == ["4", "48", "181", "x", "241"]
    assert cells["decoder/gate"][:4] == ["128", "1", "x", "1"]  # without a stride
    assert lines[-1] == (
        "warning: stage16_1 has gaps between its taps' fields of view at rate 4; "
        "the largest rate without is 3"
    )


def test_counting_again_allocates_nothing_and_follows_the_size():
    num_arrays = len(jax.live_arrays())
    model = create_model("exp48_decoder26", num_classes=19)
    for large, row in zip(
        describe.count_rows(model, (4096, 8192)), count_rows("exp48_decoder26"), strict=True
    ):
        assert large.num_parameters == row.num_parameters
        assert large.macs / row.macs == pytest.approx(16, rel=1e-3)
    assert len(jax.live_arrays()) == num_arrays


@pytest.mark.parametrize("text", ["1024", "0,8", "-4,8", "4.5,8", "a,b", "1,2,3", ""])
def test_bad_size(text):
    with pytest.raises(ValueError, match="HEIGHT,WIDTH"):
        describe.parse_size(text)


def draw(name):
    layers = field_of_view.trace_field_of_view(variants.BACKBONES[name])
    return np.asarray(describe.draw_field_of_view(name, layers, (1024, 2048)))


def find_color(picture, color):
    return np.argwhere((picture == color).all(-1))


def test_chart_shows_every_layer():
    picture = draw("exp48")
    points = find_color(picture, (31, 119, 180))  # matplotlib's tab:blue
    height, width = np.ptp(points, axis=0) / picture.shape[:2]
    assert height > 0.5
    assert width > 0.8


def test_chart_marks_gaps():
    red = (214, 39, 40)  # matplotlib's tab:red
    marks = find_color(draw("exp30"), red)
    assert np.ptp(marks, axis=0).min() > 50  # a point of the curve, besides the legend's
    assert len(find_color(draw("exp48"), red)) == 0


def test_describe_prints_and_writes(tmp_path, capsys):
    model = create_model("exp43_decoder12", num_classes=2)
    describe.describe(model, (64, 96), tmp_path / "new")
    path = tmp_path / "new" / "field_of_view_exp43_decoder12.png"
    output = capsys.readouterr().out
    assert output.startswith("exp43_decoder12, 2 classes, images of 64 x 96\n")
    assert output.endswith(f"wrote {path}\n")
    with Image.open(path) as picture:
        assert picture.mode == "RGB"


def test_command_with_an_unknown_model():
    command = [sys.executable, "-m", "regseg_jax.describe", "--model=exp48_decoder99"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("regseg_jax.describe: error: unknown model 'exp48_decoder99'")
