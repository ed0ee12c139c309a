import json
import types

import jax.numpy as jnp
import pytest

from regseg_jax.benchmark import convolutions
from regseg_jax.benchmark.convolutions import (
    PASSES,
    Record,
    choose_lowerings,
    format_records,
    list_convs,
    time_conv,
)
from regseg_jax.benchmark.core import Timing
from regseg_jax.models.regseg import create_model
from regseg_jax.ops.lowerings import (
    ConvGeometry,
    LoweringTable,
    PassLowerings,
    applicable_lowerings,
)

GROUPED = ConvGeometry(3, 1, 2, groups=2, in_channels=32, features=32, height=6, width=8)


def test_the_convolutions_of_exp48():
    convs = list_convs(create_model("exp48_decoder26", 19), (100, 200))
    assert convs[0] == ConvGeometry(3, 2, 1, 1, 3, 32, 100, 200)
    assert len(set(convs)) == len(convs)
    grouped = [conv for conv in convs if conv.groups > 1]
    assert grouped[0] == ConvGeometry(3, 2, 1, 3, 48, 48, 50, 100)
    assert grouped[1] == ConvGeometry(3, 2, 1, 8, 128, 128, 25, 50)
    at_16 = [conv for conv in grouped if (conv.height, conv.width) == (7, 13)]
    assert {conv.dilation_rate for conv in at_16} == {1, 2, 4, 14}
    assert {conv.in_channels for conv in at_16} == {256, 128, 160}  # one branch, then two
    assert {conv.kernel_size for conv in convs if conv.groups == 1} == {1, 3}


@pytest.mark.parametrize("geometry", [GROUPED, ConvGeometry(1, 1, 1, 1, 8, 4, 3, 3)])
def test_every_pass_is_timed_in_every_lowering_that_applies(geometry):
    records = time_conv(geometry, 1, jnp.float32, num_runs=2)
    assert [record.pass_name for record in records] == list(PASSES)
    names = applicable_lowerings(geometry)
    for record in records:
        assert tuple(record.timings) == names
        assert {timing.error for timing in record.timings.values()} == {None}
        assert record.fastest in names
    table = format_records(records).splitlines()
    cells = table[-1].split()
    sides = (geometry.height, "x", geometry.width, "x", geometry.in_channels)
    assert cells[:5] == [str(side) for side in sides]
    assert cells[-1] == records[-1].fastest


def record(pass_name, **seconds):
    timings = {
        name: Timing([], "no memory") if value is None else Timing([value, value])
        for name, value in seconds.items()
    }
    return Record(GROUPED, pass_name, timings)


def test_the_fastest_of_each_pass_is_chosen():
    records = [
        record("forward", conv=3e-3, rows=1e-3, dense=None),
        record("input_gradient", conv=1e-3, rows=2e-3, dense=3e-3),
        record("kernel_gradient", conv=None, rows=3e-3, dense=2e-3),
    ]
    table = choose_lowerings(records, "a device")
    assert table[GROUPED] == PassLowerings("rows", "conv", "dense")
    assert LoweringTable.from_json(json.loads(json.dumps(table.to_json())), "here") == table
    assert "failed" in format_records(records)


def test_a_convolution_that_fails_is_left_to_the_default():
    records = [record(name, conv=None if name == "forward" else 1e-3) for name in PASSES]
    assert choose_lowerings(records, "a device")[GROUPED] is None


def test_the_saved_results_are_a_table_that_runs_can_name(small_variant, monkeypatch):
    monkeypatch.setattr(convolutions, "list_convs", lambda model, size: [GROUPED])
    values = {"model": "exp48_decoder26", "size": "12,16", "batch_size": 1, "num_runs": 2}
    values |= {"precision": "float32", "tune": True, "output": "x"}
    results = convolutions.measure(types.SimpleNamespace(**values))
    table = LoweringTable.from_json(json.loads(json.dumps(results)), "x")
    assert [geometry for geometry, _ in table.choices] == [GROUPED]
    with pytest.raises(ValueError, match="add --output"):
        convolutions.measure(types.SimpleNamespace(**{**values, "output": None}))
