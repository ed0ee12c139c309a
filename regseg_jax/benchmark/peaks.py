"""What devices can do at most."""

import re

# TFLOP/s of the matrix units on dense matrices, from the makers' data sheets: NVIDIA's for the
# T4, L4, A100 (SXM and PCIe alike), H100 (PCIe and SXM) and H200; Google Cloud's pages for TPUs.
# From the A100 on, float32 is TF32, which both frameworks use for convolutions by default.
# Patterns of the device's name, the first that is found.
_PEAKS = (
    (r"\bT4\b", {"float32": 8.1, "float16": 65}),
    (r"\bL4\b", {"float32": 60, "bfloat16": 121, "float16": 121}),
    (r"\bA100\b", {"float32": 156, "bfloat16": 312, "float16": 312}),
    (r"\bH100 PCIe\b", {"float32": 378, "bfloat16": 756, "float16": 756}),
    (r"\bH[12]00\b", {"float32": 495, "bfloat16": 989, "float16": 989}),
    (r"\bTPU v4\b", {"bfloat16": 275}),
    (r"\bTPU v5 lite\b", {"bfloat16": 197}),
    (r"\bTPU v5p?\b", {"bfloat16": 459}),
    (r"\bTPU v6 lite\b", {"bfloat16": 918}),
)


def find_peak(device_kind: str, precision: str) -> float | None:
    """The TFLOP/s that a device can do at most; None where the data sheets here do not tell."""
    for pattern, peaks in _PEAKS:
        if re.search(pattern, device_kind):
            return peaks.get(precision)
    return None
