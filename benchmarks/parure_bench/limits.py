"""The limit that measurements on this machine are held against."""

from __future__ import annotations

from parure_bench.devices import Device, device_called, measured_cpu
from parure_bench.environment import gpu_states


def limit_here() -> tuple[Device | None, str]:
    """The first GPU as NVIDIA's data sheet has it, or else this processor, measured; and a line that says which."""
    states, _ = gpu_states()
    if not states:
        device = measured_cpu()
        peaks = ", ".join(f"{precision} {flops / 1e9:.0f}" for precision, flops in device.flops.items())
        return device, f"limit of this processor in GFLOP/s: {peaks} ({device.source})"
    found = device_called(states[0].name)
    if found is None:
        return None, f"{states[0].name} is not in the table of devices: no share of its limit is given"
    return found, f"limit: {found.source}"
