"""The comparison of two ways of training by pairs of runs that share a seed."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats


class PairedDifference(NamedTuple):
    """What one way's numbers are above another's, over their pairs.

    Attributes:
      pairs: how many there are, at least 2.
      difference: the mean over the pairs.
      standard_error: of the mean.
      p_value: of a two-sided paired t-test.
    """

    pairs: int
    difference: float
    standard_error: float
    p_value: float


def compare_pairs(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> PairedDifference | None:
    """Compares numbers by seed with others; None if fewer than two seeds are in both."""
    seeds = sorted(values.keys() & reference.keys())
    if len(seeds) < 2:
        return None
    differences = np.array([values[seed] - reference[seed] for seed in seeds])
    error = float(scipy.stats.sem(differences))
    difference = float(differences.mean())
    if error:
        p_value = float(2 * scipy.stats.t.sf(abs(difference) / error, len(seeds) - 1))
    else:
        p_value = 0.0 if difference else 1.0
    return PairedDifference(len(seeds), difference, error, p_value)


def format_difference(pair: PairedDifference | None, scale: float, digits: int) -> tuple[str, str]:
    """The difference with its standard error, times scale, and the p-value; "-" if there is none.

    Args:
      pair: as `compare_pairs` returns it.
      scale: 100 for fractions as percent.
      digits: behind the point.
    """
    if pair is None:
        return "-", "-"
    difference, error = scale * pair.difference, scale * pair.standard_error
    return f"{difference:+.{digits}f} +- {error:.{digits}f}", f"{pair.p_value:.3f}"
