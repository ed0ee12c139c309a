import functools

import jax
import pytest

from regseg_jax.models import field_of_view, variants
from regseg_jax.models.regseg import create_model
from regseg_jax.reports import model_table

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
    return model_table.count_rows(create_model(name, num_classes=19), size)


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
    lines = model_table.format_description(model, (1024, 2048)).splitlines()
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
    lines = model_table.format_description(model, (721, 961)).splitlines()
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
        model_table.count_rows(model, (4096, 8192)), count_rows("exp48_decoder26"), strict=True
    ):
        assert large.num_parameters == row.num_parameters
        assert large.macs / row.macs == pytest.approx(16, rel=1e-3)
    assert len(jax.live_arrays()) == num_arrays
