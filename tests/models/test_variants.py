import dataclasses

import pytest

from regseg_jax.models import variants
from regseg_jax.models.variants import BACKBONES, DECODERS, DILATION_RATES, get_variant


def _blocks(backbone):
    return [block for _, blocks in backbone.stages for block in blocks]


def test_regseg_is_the_papers():
    variant = get_variant("exp48_decoder26")
    (name4, stage4), (name8, stage8), (name16, stage16) = variant.backbone.stages
    assert (name4, name8, name16) == ("stage4", "stage8", "stage16")
    assert [b.out_channels for b in stage4 + stage8] == [48, 128, 128, 128]
    assert [b.out_channels for b in stage16] == 13 * [256] + [320]
    rates = [block.dilation_rates for block in stage16]
    assert rates == [(1,), (1,), (1, 2), *4 * [(1, 4)], *7 * [(1, 14)]]
    assert variant.backbone.group_width == 16
    assert variant.decoder == "decoder26"


@pytest.mark.parametrize("rates", DILATION_RATES.values(), ids=DILATION_RATES)
def test_every_row_has_13_blocks(rates):
    assert len(rates) == 13
    assert all(rate >= 1 for branches in rates for rate in branches)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_every_backbone_ends_its_stages_at_4_8_and_16(backbone):
    stride, ends = 2, []
    for _, blocks in backbone.stages:
        for block in blocks:
            stride *= block.stride
        ends.append(stride)
    assert ends[:3] == [4, 8, 16]
    assert set(ends[3:]) <= {16}


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_the_branches_of_every_block_split_into_groups(backbone):
    for block in _blocks(backbone):
        assert block.out_channels % (len(block.dilation_rates) * backbone.group_width) == 0


def test_every_name_is_looked_up():
    for backbone in BACKBONES:
        for decoder in DECODERS:
            variant = get_variant(f"{backbone}_{decoder}")
            assert variant.name == f"{backbone}_{decoder}"
            assert variant.backbone is BACKBONES[backbone]
            assert variant.decoder == decoder


@pytest.mark.parametrize(
    ("alias", "name"), [("regseg", "exp48_decoder26"), ("regseg_large", "exp53_decoder29")]
)
def test_aliases(alias, name):
    assert get_variant(alias) == get_variant(name)
    assert get_variant(alias).name == name


@pytest.mark.parametrize("name", ["", "exp48", "exp48_decoder27", "exp99_decoder26", "_decoder26"])
def test_unknown_names_list_what_there_is(name):
    with pytest.raises(ValueError, match=f"unknown model '{name}'") as error:
        get_variant(name)
    assert all(known in str(error.value) for known in (*BACKBONES, *DECODERS, "regseg_large"))


def test_variants_are_values():
    variant = get_variant("regseg")
    same = variants.Variant(
        variant.name, variants.create_regseg_backbone(DILATION_RATES["exp48"]), "decoder26"
    )
    assert hash(variant) == hash(same)
    assert variant == same
    with pytest.raises(dataclasses.FrozenInstanceError):
        variant.name = "other"
