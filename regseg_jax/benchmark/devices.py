"""What accelerators have and can do at most, by their makers' data sheets.

Sources: NVIDIA's data sheets and architecture white papers (Turing, Ampere GA100, Ada, Hopper) and
the table of compute capabilities in its CUDA programming guide; Google Cloud's pages of each TPU
version. Peaks are dense, in TFLOP/s of the matrix units with float32 sums. From the A100 on,
float32 is TF32, which both frameworks use for convolutions by default.

Of links: NVLink's bandwidth from the same data sheets, its latencies from the tuning model of NCCL
2.19 (`src/graph/tuning.cc`: ring, LL protocol, NVLink); the TPUs' bandwidth from Google Cloud's
pages (both directions of all ports of a chip), their microsecond a hop from "How to Scale Your
Model" (jax-ml.github.io/scaling-book).
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class ComputeUnits:
    """What NVIDIA's compiler wants to know of a GPU.

    Attributes:
      capability: compute capability, major and minor.
      multiprocessors: streaming multiprocessors.
      float32_lanes: float32 units of a multiprocessor.
      threads: resident on a multiprocessor, at most.
      shared_kib: shared memory of a multiprocessor; a block may have 1 KiB less (all on a T4).
      l2_mib: of the L2 cache.
    """

    capability: tuple[int, int]
    multiprocessors: int
    float32_lanes: int
    threads: int
    shared_kib: int
    l2_mib: int


@dataclasses.dataclass(frozen=True)
class Link:
    """Between devices.

    Attributes:
      bandwidth: bytes/s in one direction: of all of a GPU's NVLinks, or of one port of a TPU chip.
      base_us: microseconds that a collective takes to start.
      hop_us: microseconds from one device to the next.
    """

    bandwidth: float
    base_us: float
    hop_us: float


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A GPU, or a TPU chip.

    Attributes:
      name: as `--target` names it.
      pattern: of the device's name in JAX.
      memory_bytes: that a program may use; of GPUs what the driver reports.
      bandwidth: of the memory, bytes/s.
      clock_ghz: boost clock of a GPU; of a TPU the peak over the operations that its matrix units
        do in a cycle.
      peaks: TFLOP/s by precision.
      units: None for a TPU.
      link: to the next device; None if it is not known here.
    """

    name: str
    pattern: str
    memory_bytes: int
    bandwidth: float
    clock_ghz: float
    peaks: dict[str, float]
    units: ComputeUnits | None = None
    link: Link | None = None


def _half(peak: float) -> dict[str, float]:
    return {"bfloat16": peak, "float16": peak}


_HOPPER_PEAKS = {"float32": 495, **_half(989)}
_AMPERE_PEAKS = {"float32": 156, **_half(312)}
_GIB = 2**30
_NVLINK3, _NVLINK4 = Link(300e9, 6.6, 0.6), Link(450e9, 6.6, 0.6)

# The first pattern that is found counts.
ACCELERATORS = (
    Accelerator(
        *("t4", r"\bT4\b", 15_642_329_088, 320e9, 1.59),
        {"float32": 8.1, "float16": 65},
        ComputeUnits((7, 5), 40, 64, 1024, 64, 4),
    ),
    Accelerator(
        *("l4", r"\bL4\b", 23_034 * 2**20, 300e9, 2.04),
        {"float32": 60, **_half(121)},
        ComputeUnits((8, 9), 58, 128, 1536, 100, 48),
    ),
    Accelerator(
        *("rtx4090", r"\bRTX 4090\b", 24_564 * 2**20, 1008e9, 2.52),
        {"float32": 82.6, **_half(165.2)},
        ComputeUnits((8, 9), 128, 128, 1536, 100, 72),
    ),
    Accelerator(
        *("a100-40gb", r"\bA100\b.*40GB", 40_960 * 2**20, 1555e9, 1.41),
        _AMPERE_PEAKS,
        ComputeUnits((8, 0), 108, 64, 2048, 164, 40),
        _NVLINK3,
    ),
    Accelerator(  # 80 GB, SXM
        *("a100", r"\bA100\b", 85_100_068_864, 2039e9, 1.41),
        _AMPERE_PEAKS,
        ComputeUnits((8, 0), 108, 64, 2048, 164, 40),
        _NVLINK3,
    ),
    Accelerator(
        *("h100-pcie", r"\bH100 PCIe\b", 81_559 * 2**20, 2039e9, 1.755),
        {"float32": 378, **_half(756)},
        ComputeUnits((9, 0), 114, 128, 2048, 228, 50),
    ),
    Accelerator(  # SXM
        *("h100", r"\bH100\b", 84_942_979_072, 3352e9, 1.98),
        _HOPPER_PEAKS,
        ComputeUnits((9, 0), 132, 128, 2048, 228, 50),
        _NVLINK4,
    ),
    Accelerator(
        *("h200", r"\bH200\b", 143_771 * 2**20, 4800e9, 1.98),
        _HOPPER_PEAKS,
        ComputeUnits((9, 0), 132, 128, 2048, 228, 50),
        _NVLINK4,
    ),
    Accelerator("v4", r"\bTPU v4\b", 32 * _GIB, 1228e9, 1.05, {"bfloat16": 275}),
    Accelerator(
        *("v5e", r"\bTPU v5 lite\b", 16 * _GIB, 819e9, 1.5, {"bfloat16": 197}),
        link=Link(50e9, 0, 1),
    ),
    Accelerator(
        *("v5p", r"\bTPU v5p?\b", 95 * _GIB, 2765e9, 1.75, {"bfloat16": 459}),
        link=Link(100e9, 0, 1),
    ),
    Accelerator("v6e", r"\bTPU v6 lite\b", 32 * _GIB, 1640e9, 1.75, {"bfloat16": 918}),
)


def find_peak(device_kind: str, precision: str) -> float | None:
    """The TFLOP/s that a device can do at most; None if the data sheets here do not tell."""
    for accelerator in ACCELERATORS:
        if re.search(accelerator.pattern, device_kind):
            return accelerator.peaks.get(precision)
    return None
