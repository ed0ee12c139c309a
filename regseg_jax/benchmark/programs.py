"""Shows what a device that is not here would run: memory, kernels, traffic, communication.

python -m regseg_jax.benchmark.programs --config=configs/cityscapes.py --target=h100:8 \
    --mode=train --output=DIR

The real compiler makes the program, for 1 to 8 GPUs (t4, l4, rtx4090, a100, a100-40gb, h100-pcie,
h100, h200; `pip install 'regseg_jax[aot-gpu]'`) or for TPUs (v4, v5e, v5p, v6e, each alone or as a
grid such as v5e:2x2; `pip install 'regseg_jax[aot-tpu]'`), and nothing runs it: every figure is
the compiler's plan or estimate, or counted in the program's text. Writes `program.json`,
`program.png` and `hlo.txt` into DIR. A compilation takes a minute for GPUs, several for TPUs; the
search for the largest batch that fits compiles a few times more (--max_compilations=1: not at all).
Training takes a batch in --config.accumulation_steps parts, one after another.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from regseg_jax.benchmark.compilation import (
    MODES,
    compile_program,
    find_largest_batch,
    get_image_size,
)
from regseg_jax.benchmark.core import plan_memory
from regseg_jax.benchmark.hlo import count_program
from regseg_jax.benchmark.program_report import (
    NOTE,
    describe_program,
    draw_program,
    format_memory,
    format_program,
)
from regseg_jax.benchmark.targets import Target, create_target
from regseg_jax.config import Config, parse_config
from regseg_jax.reports.pictures import save_png
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import check_new, replacing, write_json


@dataclasses.dataclass
class Compiler:
    """Compiles one computation for one target at any batch size, and keeps what was learnt.

    Attributes:
      config, mode, target, image_size: see `compile_program`.
      memory: of a device, by images on a device; None if the compiler could not fit it.
      first_text: the HLO of the first program that compiled.
      seconds: that compiling took, each time.
    """

    config: Config
    mode: str
    target: Target
    image_size: tuple[int, int]
    memory: dict[int, dict[str, int] | None] = dataclasses.field(default_factory=dict)
    first_text: str = ""
    seconds: list[float] = dataclasses.field(default_factory=list)

    def count_memory(self, images: int) -> int | None:
        """Bytes on a device with this many images on each."""
        batch_size, start = images * len(self.target.devices), time.perf_counter()
        print(f"compiling for {self.target.name}, {images} images per device ...", flush=True)
        try:
            compiled = compile_program(
                self.config, self.mode, self.target, batch_size, self.image_size
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            self.memory[images] = None
            return None
        finally:
            self.seconds.append(time.perf_counter() - start)
        self.first_text = self.first_text or compiled.as_text()
        self.memory[images] = plan_memory(compiled)
        print(format_memory(self.memory[images], self.target.memory_limit), flush=True)
        return self.memory[images]["total"]


def describe(compiler: Compiler, images: int, max_compilations: int) -> dict[str, Any]:
    """Compiles for this many images per device, and for others to find how many fit.

    Returns:
      Everything but the environment, as plain data.

    Raises:
      ValueError: if not even one image fits.
    """
    target, config = compiler.target, compiler.config
    parts = _count_parts(config, compiler.mode)  # which have as many images each
    fits, too_large = find_largest_batch(
        lambda images_per_part: compiler.count_memory(parts * images_per_part),
        target.memory_limit,
        images // parts,
        max_compilations,
    )
    fits, too_large = parts * fits, too_large and parts * too_large
    if not compiler.first_text:
        raise ValueError(
            f"the compiler for {target.name} fits none of {sorted(compiler.memory)} images on a "
            "device; give fewer or smaller ones"
        )
    counted = next(n for n, memory in compiler.memory.items() if memory)
    program = count_program(compiler.first_text)
    return {
        "note": NOTE,
        "target": target.name,
        "devices": len(target.devices),
        "mode": compiler.mode,
        "model": config.model,
        "precision": config.precision,
        "image_size": compiler.image_size,
        "crop_size": config.augment.crop_size if compiler.mode == "train" else None,
        "accumulation_steps": parts,
        "images_per_device": counted,
        "memory_limit": target.memory_limit,
        "memory": compiler.memory[counted],
        "fits": compiler.memory[counted]["total"] <= target.memory_limit,
        "largest_images_per_device": {
            "fits": fits,
            "too_large": too_large,
            "bytes_by_images": {n: m and m["total"] for n, m in sorted(compiler.memory.items())},
        },
        "compile_seconds": compiler.seconds,
        **describe_program(program, target, config.precision),
    }


def format_result(result: dict[str, Any]) -> str:
    """All of it for the terminal."""
    largest, devices = result["largest_images_per_device"], result["devices"]
    fits, too_large = largest["fits"], largest["too_large"]
    parts = result["accumulation_steps"]
    if too_large == fits + parts:
        verdict = f"the largest batch that fits is {fits} on a device, {fits * devices} in all"
    else:
        below = "" if too_large is None else f", {too_large} are too many"
        verdict = f"{fits} images fit on a device{below}; more --max_compilations find the limit"
    return "\n".join(
        [
            f"{result['model']}, {result['precision']}, {result['mode']}, {result['target']}: "
            f"{result['images_per_device']} images on each of {devices} devices"
            + (f", {parts} parts one after another" if parts > 1 else ""),
            f"every figure is {NOTE}",
            format_memory(result["memory"], result["memory_limit"]),
            *(verdict, "", format_program(result)),
        ]
    )


def _choose_images(config: Config, mode: str, target: Target, batch_size: int | None) -> int:
    default = {"train": config.global_batch_size, "evaluation": config.eval.batch_size}
    devices = len(target.devices)
    batch_size = batch_size or default.get(mode, devices)
    divisor = devices * _count_parts(config, mode)
    if batch_size % divisor:
        parts = f"the {devices} devices of {target.name}"
        if divisor > devices:
            parts += f" with config.accumulation_steps={config.accumulation_steps} on each"
        raise ValueError(
            f"the batch of {batch_size} does not divide over {parts}; add "
            f"--batch_size={-(-batch_size // divisor) * divisor}"
        )
    return batch_size // devices


def _count_parts(config: Config, mode: str) -> int:
    return config.accumulation_steps if mode == "train" else 1


def main(argv: list[str]) -> None:
    """Compiles, counts, prints and saves what the flags name."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    values = flags.FLAGS
    output = pathlib.Path(values.output)
    check_new(output / "program.json")
    jax.config.update("jax_platforms", "cpu")  # the devices are elsewhere; none here is used
    jax.config.update("jax_enable_compilation_cache", False)
    config = parse_config(values.config)
    image_size = (
        parse_size(values.image_size, "image_size") if values.image_size else get_image_size(config)
    )
    target = create_target(values.target)
    images = _choose_images(config, values.mode, target, values.batch_size)
    compiler = Compiler(config, values.mode, target, image_size)
    result = describe(compiler, images, values.max_compilations)
    print(f"\n{format_result(result)}")
    with replacing(output / "hlo.txt") as partial:
        partial.write_text(compiler.first_text)
    title = f"{config.model}, {config.precision}, {values.mode}, {target.name}"
    title += f", {result['images_per_device']} images per device"
    save_png(draw_program(result, title), output / "program.png")
    write_json(output / "program.json", {"environment": describe_environment(), **result})
    print(f"wrote program.json, program.png and hlo.txt into {output}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
    flags.DEFINE_string("target", None, "The devices, such as t4, h100:8, v5e or v5e:2x2.")
    flags.DEFINE_enum("mode", "train", MODES, "What is compiled.")
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images at once over all devices; else the config's, one a device for inference.",
        lower_bound=1,
    )
    flags.DEFINE_string("image_size", None, "HEIGHT,WIDTH; else the data set's.")
    flags.DEFINE_integer(
        "max_compilations", 5, "To find the largest batch; 1: only what was asked.", lower_bound=1
    )
    flags.DEFINE_string("output", None, "Folder for program.json, program.png and hlo.txt.")
    flags.mark_flags_as_required(["config", "target", "output"])
    run_command(main, "regseg_jax.benchmark.programs")
