"""Times and differences in numbers. Needs Python alone, because one benchmark runs without JAX."""

import statistics
from collections.abc import Sequence


def summarize(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 5th and 95th percentile of at least two times, in milliseconds."""
    quantiles = statistics.quantiles(seconds, n=20, method="inclusive")
    median, p5, p95 = (1e3 * quantiles[i] for i in (9, 0, 18))
    return {"median_ms": median, "p5_ms": p5, "p95_ms": p95}


def check_difference(relative_difference: float, tolerance: float) -> None:
    """Raises a ValueError if a difference to float32 is beyond rounding, or not a number."""
    if not relative_difference <= tolerance:
        raise ValueError(
            f"differs from float32 by {relative_difference:.3g} standard deviations of "
            f"the logits; rounding explains {tolerance}"
        )


def describe_error(error: Exception) -> str:
    """The first line of what went wrong."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
