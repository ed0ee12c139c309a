import dataclasses
import json

import numpy as np
import pytest

from regseg_jax.benchmark import program_report, programs
from regseg_jax.benchmark.compilation import get_image_size
from regseg_jax.benchmark.devices import ACCELERATORS
from regseg_jax.benchmark.hlo import Collective, Cost, Program
from regseg_jax.benchmark.targets import Target
from regseg_jax.config import Config
from regseg_jax.data.dataset import DataConfig

H100 = next(accelerator for accelerator in ACCELERATORS if accelerator.name == "h100")
TARGET = Target("h100:2", H100, "cuda", (None, None))
TPU = Target("v5e", next(a for a in ACCELERATORS if a.name == "v5e"), "tpu", ())
PROGRAM = Program(
    {
        "stem": Cost(kernels=3, bytes=3_352_000_000, flops=10**9, cycles=3_000_000),
        "decoder": Cost(kernels=4, bytes=3_352_000, flops=989 * 10**9, cycles=0),
    },
    (
        Collective("all-reduce", 900_000, 4, Cost()),
        Collective("all-reduce", 450_000, 1, Cost(kernels=2, bytes=3_352_000)),
    ),
)


def test_the_bound_that_holds():
    described = program_report.describe_program(PROGRAM, TARGET, "bfloat16")
    stem, decoder = described["parts"]["stem"], described["parts"]["decoder"]
    assert stem["bandwidth_ms"] == pytest.approx(1)
    assert stem["bound"] == "bandwidth"
    assert decoder["peak_ms"] == pytest.approx(1)
    assert decoder["bound"] == "peak"
    assert described["total"]["kernels"] == 7
    lines = program_report.format_program(described).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["stem", "decoder", "all"]
    collectives = "all-reduce: 5, 4 of them with no kernel beside, 4.0 MB received by a device"
    assert lines[-2] == collectives
    # Each 6.6 us and 2 hops of 0.6; 2 and 1 us of bytes, since a device of two sends its array.
    times = described["communication"]
    assert times["ms"] == pytest.approx(5 * 7.8e-3 + 4 * 2e-3 + 1e-3)
    assert times["exposed_ms"] == pytest.approx(times["ms"] - 1e-3)  # a kernel of 1 us beside one
    step = 1 + 1e-3 + times["exposed_ms"]
    assert times["fraction"] == pytest.approx(times["exposed_ms"] / step)
    assert times["one_ms"] == pytest.approx(7.8e-3 + 9e-3)
    assert lines[-1].startswith("by latency and bandwidth of the links they take 0.05 ms, 0.05")


def test_links_that_are_not_known_give_no_time():
    t4 = next(accelerator for accelerator in ACCELERATORS if accelerator.name == "t4")
    target = Target("t4:2", t4, "cuda", (None, None))
    described = program_report.describe_program(PROGRAM, target, "float16")
    assert described["communication"] is None
    assert described["collectives"]["all-reduce"]["number"] == 5
    assert "links" not in program_report.format_program(described)


def test_a_tpu_s_cycles_and_a_peak_that_is_not_known():
    target = Target(TPU.name, TPU.accelerator, "tpu", (type("Device", (), {"coords": (0,)})(),))
    described = program_report.describe_program(PROGRAM, target, "float32")
    assert described["total"]["peak_ms"] is None
    assert described["total"]["cycles_ms"] == pytest.approx(2)
    assert "ms by cycles" in program_report.format_program(described)
    picture = np.asarray(program_report.draw_program(described, "a title"))
    assert picture.std() > 10


class FakeProgram:
    """Compiled for no device; memory grows by a gigabyte per image."""

    def __init__(self, images):
        size = {"argument": 1, "output": 1, "temp": images, "alias": 1}
        for name, gigabytes in size.items():
            setattr(self, f"{name}_size_in_bytes", gigabytes * 10**9)

    def memory_analysis(self):
        return self

    def as_text(self):
        return "ENTRY %main (x: f32[2]) -> f32[2] {\n  %y = f32[2]{0} copy(%x.1), metadata={}\n}\n"


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(
        programs,
        "compile_program",
        lambda config, mode, target, batch, size: FakeProgram(batch // 2),
    )
    monkeypatch.setattr(programs, "count_program", lambda text: PROGRAM)
    config = Config(data=DataConfig("cityscapes"), precision="bfloat16")
    return programs.Compiler(config, "train", TARGET, get_image_size(config))


def test_what_fits_is_said(compiler, capsys):
    result = json.loads(json.dumps(programs.describe(compiler, 8, max_compilations=6)))
    limit = int(0.75 * H100.memory_bytes / 1e9)
    assert result["largest_images_per_device"]["fits"] == limit - 1
    assert result["fits"]
    assert result["memory"]["total"] == 9 * 10**9
    text = programs.format_result(result)
    assert f"that fits is {limit - 1} on a device, {2 * (limit - 1)} in all" in text
    assert "nothing was measured" in text
    assert "compiling for h100:2, a batch of 16" in capsys.readouterr().out


def test_a_batch_in_parts_is_tried_in_multiples_of_them(compiler):
    compiler.config = dataclasses.replace(compiler.config, accumulation_steps=4)
    result = programs.describe(compiler, 8, max_compilations=6)
    limit = int(0.75 * H100.memory_bytes / 1e9) - 1
    largest = result["largest_images_per_device"]
    assert largest["fits"] == limit // 4 * 4
    assert all(images % 4 == 0 for images in compiler.memory)
    text = programs.format_result(result)
    assert "8 images on each device, of which there are 2, 4 parts one after another" in text
    assert f"that fits is {limit // 4 * 4} on a device" in text


def test_one_compilation_finds_no_limit(compiler):
    result = programs.describe(compiler, 8, max_compilations=1)
    assert len(compiler.seconds) == 1
    assert "more --max_compilations" in programs.format_result(result)


@pytest.mark.parametrize(("mode", "images"), [("train", 4), ("evaluation", 4), ("inference", 1)])
def test_the_config_s_batch_is_the_default(mode, images):
    assert programs._choose_images(Config(), mode, TARGET, None) == images


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"batch of 3 .* 2 devices of h100:2; add --batch_size=4"):
        programs._choose_images(Config(), "train", TARGET, 3)
    config = Config(accumulation_steps=4)
    with pytest.raises(ValueError, match=r"steps=4 on each; add --batch_size=16"):
        programs._choose_images(config, "train", TARGET, 12)
    assert programs._choose_images(config, "inference", TARGET, 2) == 1
