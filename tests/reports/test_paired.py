import math

import pytest

from regseg_jax.reports.paired import compare_pairs, format_difference


def test_the_seeds_that_both_have_are_compared():
    pair = compare_pairs({0: 1.5, 1: 2.1, 7: 9}, {0: 1, 1: 2, 2: 3})
    assert pair.pairs == 2
    assert pair.difference == pytest.approx(0.3)
    assert pair.standard_error == pytest.approx(0.2)
    # t = 1.5 with one degree of freedom, a Cauchy distribution.
    assert pair.p_value == pytest.approx(1 - 2 * math.atan(1.5) / math.pi)
    assert format_difference(pair, 100, 1) == ("+30.0 +- 20.0", "0.374")


def test_pairs_that_all_differ_by_the_same():
    assert compare_pairs({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}) == (2, 0.5, 0.0, 0.0)
    assert compare_pairs({0: 1.5, 1: 2.5}, {0: 1.5, 1: 2.5}) == (2, 0.0, 0.0, 1.0)


def test_one_pair_has_no_uncertainty():
    assert compare_pairs({0: 1.0}, {0: 2.0, 1: 3.0}) is None
    assert format_difference(None, 1, 2) == ("-", "-")
