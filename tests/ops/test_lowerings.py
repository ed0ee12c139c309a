import json

import pytest

from regseg_jax.ops.lowerings import ConvGeometry, LoweringTable, PassLowerings

GEOMETRY = ConvGeometry(3, 1, 14, 8, 128, 128, 48, 48)
CHOICE = PassLowerings("dense", "conv", "merged_64")
TABLE = LoweringTable("a device", ((GEOMETRY, CHOICE),))


def test_a_table_survives_json():
    content = json.loads(json.dumps(TABLE.to_json()))
    read = LoweringTable.from_json(content, "table.json")
    assert read == TABLE
    assert hash(read) == hash(TABLE)
    assert read[GEOMETRY] == CHOICE


def test_a_geometry_that_is_not_listed_has_no_choice():
    assert TABLE[ConvGeometry(3, 1, 14, 8, 128, 128, 48, 96)] is None


def test_a_geometry_is_listed_once():
    with pytest.raises(ValueError, match="geometry twice"):
        LoweringTable("a device", 2 * TABLE.choices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward": "fft"}, "lowering 'fft'"),
        ({"forward": "product"}, "lowering 'product'"),
        ({"height": "48"}, 'height is "48"'),
        ({"batch": 1}, "batch"),
    ],
)
def test_bad_rows_are_named(change, message):
    content = TABLE.to_json()
    content["convolutions"][0] |= change
    with pytest.raises(ValueError, match=rf"table.json is not a table.*{message}"):
        LoweringTable.from_json(content, "table.json")


@pytest.mark.parametrize("content", [[], {}, {"device": "x", "convolutions": [{"stride": 1}]}])
def test_files_of_another_kind_are_named(content):
    with pytest.raises(ValueError, match=r"table.json is not a table of lowerings"):
        LoweringTable.from_json(content, "table.json")
