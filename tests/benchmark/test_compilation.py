import dataclasses

import jax
import pytest

from regseg_jax.benchmark import compilation
from regseg_jax.benchmark.compilation import (
    MODES,
    compile_program,
    find_largest_batch,
    get_image_size,
)
from regseg_jax.benchmark.core import plan_memory
from regseg_jax.benchmark.devices import ACCELERATORS
from regseg_jax.benchmark.hlo import count_program
from regseg_jax.benchmark.targets import Target
from regseg_jax.config import Config
from regseg_jax.data.augment import AugmentConfig
from regseg_jax.data.dataset import DataConfig
from regseg_jax.training.sharding import arrange_mesh


@pytest.mark.parametrize("limit", [0, 90, 100, 130, 1000, 100_000])
@pytest.mark.parametrize("first", [1, 8, 64])
def test_the_largest_batch_of_linear_memory_takes_few_compilations(limit, first):
    tried = []

    def count(batch):
        tried.append(batch)
        return 90 + 10 * batch

    fits, too_large = find_largest_batch(count, limit, first, max_compilations=8)
    assert fits == max((limit - 90) // 10, 0)
    assert too_large == fits + 1
    assert len(set(tried)) == len(tried) <= 6


def test_the_search_stops_where_it_is_told_and_when_the_compiler_gives_up():
    assert find_largest_batch(lambda batch: batch, 100, 8, max_compilations=1) == (8, None)
    tried = []

    def count(batch):
        tried.append(batch)
        return None if batch > 5 else batch

    assert find_largest_batch(count, 100, 16, max_compilations=9) == (5, 6)
    assert len(tried) <= 7


def test_memory_that_is_not_linear_is_still_bracketed():
    fits, too_large = find_largest_batch(lambda n: n**2 + 7 * (n % 3), 1000, 2, 30)
    assert too_large == fits + 1
    assert fits**2 + 7 * (fits % 3) <= 1000 < too_large**2 + 7 * (too_large % 3)


def test_image_sizes():
    assert get_image_size(Config(data=DataConfig("cityscapes"))) == (1024, 2048)
    assert get_image_size(Config(data=DataConfig("synthetic"))) == (120, 160)
    with pytest.raises(ValueError, match="add --image_size"):
        get_image_size(Config(data=DataConfig("folder")))


@pytest.fixture(scope="module")
def config():
    augment = AugmentConfig((32, 48), 32, 64, rand_augment_num_ops=0)
    data = DataConfig("synthetic", class_uniform_share=0.5)
    return Config(model="exp48_decoder12", augment=augment, data=data, precision="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_compiles_for_two_devices(config, mode):
    """For two simulated CPUs, as the compilers of other devices are not needed here."""
    target = Target("cpus", ACCELERATORS[0], "cpu", tuple(jax.devices()[:2]))
    compiled = compile_program(config, mode, target, 4, (64, 96))
    memory = plan_memory(compiled)
    pixels = 2 * 64 * 96  # on each device
    assert memory["arguments"] > pixels * (3 if mode == "inference" else 4)
    program = count_program(compiled.as_text())
    assert {"stem", "stage4", "stage8", "stage16", "decoder"} <= set(program.parts)
    assert ("optimizer" in program.parts) == ("augmentation" in program.parts) == (mode == "train")
    if mode == "inference":
        assert not program.collectives
    else:
        assert "all-reduce" in {collective.kind for collective in program.collectives}


@pytest.mark.slow
def test_devices_that_share_an_image_need_less_memory_each(config):
    def plan(num_devices):
        target = Target("cpus", ACCELERATORS[0], "cpu", tuple(jax.devices()[:num_devices]))
        sharing = dataclasses.replace(config, spatial_devices=num_devices, augment=AugmentConfig())
        compiled = compile_program(sharing, "inference", target, 1, (512, 256))
        return plan_memory(compiled)["temporary"], count_program(compiled.as_text())

    (one, alone), (four, shared) = plan(1), plan(4)
    assert four < 0.6 * one  # at 1/16 a device has 8 rows of its own and up to 28 of the others
    assert not alone.collectives
    assert "collective-permute" in {collective.kind for collective in shared.collectives}


def test_the_config_s_own_batch_and_precise_bn_do_not_matter(config, monkeypatch):
    """A larger batch than precise BN has images would be no legal config of a run."""
    evaluation = dataclasses.replace(config.eval, precise_bn_images=8)
    config = dataclasses.replace(config, eval=evaluation)
    seen = []
    monkeypatch.setattr(
        compilation.Run, "create_train_step", lambda run: seen.append(run.config.global_batch_size)
    )
    target = Target("cpus", ACCELERATORS[0], "cpu", tuple(jax.devices()[:2]))
    compilation._create_train_step(config, arrange_mesh(target.devices), 64)
    assert seen == [64]
