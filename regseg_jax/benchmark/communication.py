"""Estimates the time that the devices of a compiled program spend on sending."""

from typing import Any

from regseg_jax.benchmark.hlo import Collective, Cost, Program
from regseg_jax.benchmark.targets import Target

# What a device of n sends, as a multiple of the bytes that it ends up with, by the ring algorithm;
# and how often data go around the ring.
_SENT = {
    "all-reduce": (lambda n: 2 * (n - 1) / n, 2),
    "all-gather": (lambda n: (n - 1) / n, 1),
    "reduce-scatter": (lambda n: n - 1, 1),
    "all-to-all": (lambda n: (n - 1) / n, 1),
    "collective-permute": (lambda n: 1, 1),
    "collective-broadcast": (lambda n: 1, 1),
}


def estimate_ms(cost: Cost, target: Target) -> float:
    """The least time of kernels: by the TPU compiler's cycles, or by a GPU's memory bandwidth."""
    if target.platform == "tpu":
        return cost.cycles / (1e6 * target.accelerator.clock_ghz)
    return 1e3 * cost.bytes / target.bandwidth


def estimate_collective_ms(collective: Collective, target: Target) -> float:
    """The least time of one collective: its latency, and its bytes over the links."""
    link, (sent, rounds) = target.accelerator.link, _SENT[collective.kind]
    hops = rounds * sum(side - 1 for side in target.grid)
    ports = max(1, len(target.grid)) if target.platform == "tpu" else 1
    latency_us = link.base_us + hops * link.hop_us
    return latency_us / 1e3 + 1e3 * collective.bytes * sent(len(target.devices)) / (
        ports * link.bandwidth
    )


def describe_communication(program: Program, target: Target) -> dict[str, Any]:
    """The collectives as plain data.

    Returns:
      `collectives`: by kind, `number`, `bytes` that a device ends up with, and how many run
      `alone`, with no kernel beside them; `communication`, None where the links are not known:
      `ms` of all of them, `exposed_ms` that no kernel hides, the `fraction` of those in the time
      of a step, and `one_ms`, if all bytes of a kind were sent at once.
    """
    kinds = dict.fromkeys(collective.kind for collective in program.collectives)
    by_kind = {kind: [c for c in program.collectives if c.kind == kind] for kind in kinds}
    collectives = {
        kind: {
            "number": sum(c.times for c in found),
            "bytes": sum(c.times * c.bytes for c in found),
            "alone": sum(c.times for c in found if not c.beside.kernels),
        }
        for kind, found in by_kind.items()
    }
    if target.accelerator.link is None or not collectives:
        return {"collectives": collectives, "communication": None}
    times = [(c.times, estimate_collective_ms(c, target), c.beside) for c in program.collectives]
    exposed = sum(n * max(0, ms - estimate_ms(beside, target)) for n, ms, beside in times)
    merged = (Collective(kind, row["bytes"], 1, Cost()) for kind, row in collectives.items())
    communication = {
        "ms": sum(n * ms for n, ms, _ in times),
        "exposed_ms": exposed,
        "fraction": exposed / (exposed + estimate_ms(program.total, target)),
        "one_ms": sum(estimate_collective_ms(collective, target) for collective in merged),
    }
    return {"collectives": collectives, "communication": communication}


def format_communication(described: dict[str, Any]) -> str:
    """A line for each kind, and one for their time."""
    lines = [
        f"{kind}: {row['number']}, {row['alone']} of them with no kernel beside, "
        f"{row['bytes'] / 1e6:.1f} MB received by a device"
        for kind, row in described["collectives"].items()
    ]
    if times := described["communication"]:
        lines.append(
            f"by latency and bandwidth of the links they take {times['ms']:.2f} ms, "
            f"{times['exposed_ms']:.2f} of it exposed: {times['fraction']:.0%} of a step; "
            f"sent at once {times['one_ms']:.2f} ms"
        )
    return "\n".join(lines or ["no collectives"])
