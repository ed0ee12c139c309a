import jax.numpy as jnp

from regseg_jax.benchmark.convolutions import (
    LOWERINGS,
    PASSES,
    GroupedConv,
    format_records,
    list_grouped_convs,
    measure,
)
from regseg_jax.models import variants


def test_the_convolutions_of_exp48():
    convs = list_grouped_convs(variants.get_variant("exp48_decoder26").backbone, (100, 200), 2)
    assert convs[0] == GroupedConv((2, 50, 100, 48), groups=3, stride=2, dilation_rate=1)
    assert convs[1] == GroupedConv((2, 25, 50, 128), groups=8, stride=2, dilation_rate=1)
    at_16 = [conv for conv in convs if conv.shape[1:3] == (7, 13)]
    assert {conv.dilation_rate for conv in at_16} == {1, 2, 4, 14}
    assert {conv.shape[3] for conv in at_16} == {256, 128, 160}  # one branch, then two
    assert len(set(convs)) == len(convs)


def test_every_pass_is_timed_in_every_lowering():
    conv = GroupedConv((1, 6, 8, 32), groups=2, stride=1, dilation_rate=2)
    records = measure(conv, jnp.float32, num_runs=2)
    assert [record["pass"] for record in records] == list(PASSES)
    assert all(record["times"][name]["median_ms"] > 0 for record in records for name in LOWERINGS)
    table = format_records(records).splitlines()
    assert table[-1].split()[:10] == ["1", "x", "6", "x", "8", "x", "32", "2", "1", "2"]
