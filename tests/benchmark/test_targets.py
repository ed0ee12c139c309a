import importlib
import re
import types

import pytest

from regseg_jax.benchmark import targets
from regseg_jax.benchmark.devices import ACCELERATORS
from regseg_jax.benchmark.targets import Target, create_target, format_gpu

NAMES = {accelerator.name: accelerator for accelerator in ACCELERATORS}


def test_the_targets_that_must_be_there():
    assert NAMES.keys() >= {"t4", "a100", "h100", "l4", "rtx4090", "v5e", "v6e", "v4"}
    assert len(NAMES) == len(ACCELERATORS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h300", "known are t4, l4"),
        ("h100:0", "give 1 to 8 GPUs"),
        ("h100:9", "give 1 to 8 GPUs"),
        ("t4:2x2", "give 1 to 8 GPUs"),
        ("v5e:4", "as a grid, v5e:2x2"),
    ],
)
def test_bad_targets_are_named(name, message):
    with pytest.raises(ValueError, match=f"--target is '{name}'.*{message}"):
        create_target(name)


@pytest.mark.parametrize(("name", "extra"), [("h100:8", "aot-gpu"), ("v5e:2x2", "aot-tpu")])
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, name, extra):
    def import_module(module):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ValueError, match=rf"--target={name} needs .*regseg_jax\[{extra}\]"):
        create_target(name)


def test_the_figures_that_the_compiler_gets():
    text = format_gpu(NAMES["h100"])
    figures = dict(re.findall(r"^  (\w+): ([\d.]+)$", text, re.MULTILINE))
    # As XLA reports them of a real one.
    assert figures["core_count"] == "132"
    assert figures["shared_memory_per_core"] == "233472"
    assert figures["shared_memory_per_block_optin"] == "232448"
    assert figures["l2_cache_size"] == "52428800"
    assert figures["device_memory_size"] == "84942979072"
    assert "cuda_compute_capability { major: 9 minor: 0 }" in text
    assert "shared_memory_per_block_optin: 65536" in format_gpu(NAMES["t4"])
    assert text.count("{") == text.count("}")


def create_devices(name, coords):
    accelerator = NAMES[name]
    platform = "cuda" if accelerator.units else "tpu"
    devices = tuple(types.SimpleNamespace(coords=x) for x in coords)
    return Target(name, accelerator, platform, devices)


def test_a_device_of_a_two_core_chip_is_half_of_it():
    whole = create_devices("v5e", [(0, 0, 0), (1, 0, 0)])
    half = create_devices("v4", [(0, 0, 0), (0, 0, 0)])
    assert whole.memory_limit == 16 * 2**30
    assert half.memory_limit == 16 * 2**30
    assert half.bandwidth == NAMES["v4"].bandwidth / 2
    assert half.get_peak("bfloat16") == 137.5e12
    assert half.get_peak("float16") is None


def test_the_grid_of_links():
    assert create_devices("h100", [None] * 8).grid == (8,)
    assert create_devices("h100", [None]).grid == ()
    assert create_devices("v5e", [(x, y, 0) for x in range(4) for y in range(2)]).grid == (4, 2)
    assert create_devices("v4", [(0, 0, 0), (0, 0, 0)]).grid == ()  # two cores of a chip


def test_a_gpu_s_limit_is_what_jax_allocates():
    assert create_devices("t4", [None]).memory_limit == int(0.75 * 15_642_329_088)


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs the extra aot-gpu"
)
def test_gpus_that_are_not_here():
    target = create_target("t4:2")
    assert len(target.devices) == target.mesh.size == 2
    assert target.platform == "cuda"
    assert targets.BATCH_AXIS in target.mesh.axis_names
