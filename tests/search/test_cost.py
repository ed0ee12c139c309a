import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.benchmark.workload import create_workload
from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg
from regseg_jax.search.cost import METHODS, prepare_step


@pytest.mark.slow
def test_every_step_trains_and_searching_needs_more_memory(small_variant):
    backbone = variants.replace_dilation_rates(small_variant.backbone, [[1, 1], [1, 2]])
    model = RegSeg(variants.Variant("small_decoder12", backbone, "decoder12"), num_classes=19)
    workload = create_workload("train", model, (32, 48), batch_size=2)
    fixed, continuous, relaxed = (prepare_step(workload, method, 3) for method in METHODS)
    # Taps that are wide at first blur a little.
    assert continuous.output[0] == pytest.approx(fixed.output[0], rel=0.05)
    for prepared in (fixed, continuous, relaxed):
        assert prepared.output[0] > prepared.output[1] > prepared.output[2]
        assert np.isfinite(jax.device_get(jnp.asarray(prepared.run())))  # it may go on
    assert min(continuous.memory_bytes, relaxed.memory_bytes) > fixed.memory_bytes
