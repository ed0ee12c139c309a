import dataclasses
import json

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


# --- Rates in the name, and variant files ---


def _write(folder, **changes):
    content = {
        "backbone": "exp48",
        "decoder": "decoder26",
        "dilation_rates": 13 * [[1, 3]],
        "found": {"seed": 0},
    }
    content |= changes
    path = folder / "found.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return str(path)


def test_a_variant_file_is_a_model_that_its_name_says_whole(tmp_path):
    rates = [[1], [1, 2], *10 * [[2, 7]], [1, 2, 3, 4, 5]]
    variant = get_variant(_write(tmp_path, dilation_rates=rates))
    assert variants.get_dilation_rates(variant.backbone) == tuple(map(tuple, rates))
    assert variant.decoder == "decoder26"
    before, after = BACKBONES["exp48"].stages[:2], variant.backbone.stages[:2]
    assert before == after
    assert get_variant(variant.name) == variant
    assert variant.name.startswith("exp48@1-1,2-2,7-")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbones_own_rates_give_it_back(name):
    rates = variants.get_dilation_rates(BACKBONES[name])
    assert variants.create_variant(name, "decoder26", rates).backbone == BACKBONES[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilation_rates": [*12 * [[1, 3]], [0, 3]]}, "block 12 has the rate 0; set whole"),
        ({"dilation_rates": [[1, 2.5], *12 * [[1, 3]]]}, r"block 0 has the rate 2\.5"),
        ({"dilation_rates": [[1, "4"], *12 * [[1, 3]]]}, "block 0 has the rate '4'"),
        ({"dilation_rates": [[1, True], *12 * [[1, 3]]]}, "block 0 has the rate True"),
        ({"dilation_rates": 12 * [[1, 3]]}, "rates for 12 blocks, and the backbone has 13"),
        (
            {"dilation_rates": 13 * [[1, 2, 3]]},
            "block 0 has 3 rates; its 256 channels in groups of 16 split into 1, 2, 4, 8, 16 b",
        ),
        ({"dilation_rates": [[], *12 * [[1, 3]]]}, "block 0 has 0 rates"),
        ({"dilation_rates": 13 * [3]}, "dilation_rates is .* write a list of rates for each"),
        ({"dilation_rates": {"a": 1}}, "dilation_rates is .* write a list of rates for each"),
        ({"dilation_rates": None}, r"holds \['backbone', 'decoder', 'found'\]; a variant file has"),
        ({"rates": []}, "'rates'.*a variant file has backbone, decoder, dilation_rates"),
        ({"backbone": "exp99"}, "the backbone is 'exp99'; use one of exp30"),
        ({"backbone": ["exp48"]}, r"the backbone is \['exp48'\]; use one of exp30"),
        ({"decoder": "decoder27"}, "the decoder is 'decoder27'; use one of decoder4"),
    ],
)
def test_a_wrongly_edited_variant_file_is_named_with_the_mend(tmp_path, changes, message):
    path = _write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        get_variant(path)
    assert path in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[1]", "holds list"), ("\x00", "is no JSON")]
)
def test_a_file_that_is_no_variant_is_named(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        get_variant(str(path))


def test_a_missing_variant_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the variant file .*no\.json: No such file"):
        get_variant(str(tmp_path / "no.json"))


@pytest.mark.parametrize(
    ("rates", "message"),
    [("1-a", "are not integers"), ("", "are not integers"), ("1-2", "rates for 2 blocks")],
)
def test_bad_rates_in_a_name(rates, message):
    with pytest.raises(ValueError, match=message):
        get_variant(f"exp48@{rates}_decoder26")
