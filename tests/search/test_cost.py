import pytest

from regseg_jax.benchmark.workload import create_workload
from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg
from regseg_jax.search.cost import prepare_step


@pytest.mark.slow
@pytest.mark.parametrize("searched", [False, True])
def test_a_step_of_either_kind_of_rates_runs(small_variant, searched):
    rates = [[1, 1], [1, 2]]
    backbone = variants.replace_dilation_rates(small_variant.backbone, rates)
    model = RegSeg(variants.Variant("small_decoder12", backbone, "decoder12"), num_classes=19)
    run, seconds = prepare_step(
        create_workload("train", model, (32, 48), batch_size=2), searched=searched
    )
    run()
    run()  # the state is donated and replaced
    assert seconds > 0
