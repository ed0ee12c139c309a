import pytest

from regseg_jax.reports.tables import format_table


def test_table_is_aligned():
    table = format_table(["layer", "shape", "parameters"], [["stem", "3x3", 864], ["head", "", 7]])
    assert table.splitlines() == [
        "layer  shape  parameters",
        "-----  -----  ----------",
        "stem     3x3         864",
        "head                   7",
    ]


def test_table_of_no_rows():
    assert format_table(["a", "b"], []) == "a  b\n-  -"


def test_table_names_a_row_of_the_wrong_length():
    with pytest.raises(ValueError, match=r"\('x',\) has 1 cells for 2 headers"):
        format_table(["a", "b"], [["x"]])
