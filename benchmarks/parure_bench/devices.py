"""What devices can do at most: NVIDIA's published figures, or this machine's processor, measured.

Peaks are dense (no structured sparsity) with accumulation in fp32; data sheets that print sparse figures are halved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parure.errors import InputError
from parure.manifest import Precision

TERA = 1e12
HERE = "cpu"


@dataclass(frozen=True)
class Device:
    """Limits of one device: FLOP/s by precision, bytes per second; `source` says who says so.

    fp32 is that of plain arithmetic units, without TF32.
    """

    name: str
    flops: dict[Precision, float]
    bandwidth: float
    source: str

    def peak(self, precision: Precision) -> float:
        return self.flops[precision]


def _gpu(name: str, half: float, single: float, terabytes: float, source: str) -> Device:
    flops = {Precision.FP16: half * TERA, Precision.BF16: half * TERA, Precision.FP32: single * TERA}
    return Device(name, flops, terabytes * TERA, source)


DEVICES: dict[str, Device] = {
    "t4": _gpu("NVIDIA T4", 65, 8.1, 0.320, "NVIDIA T4 data sheet (fp16; it has no bf16)"),
    "a10": _gpu("NVIDIA A10", 125, 31.2, 0.600, "NVIDIA A10 data sheet"),
    "a30": _gpu("NVIDIA A30", 165, 10.3, 0.933, "NVIDIA A30 data sheet"),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", 312, 19.5, 2.039, "NVIDIA A100 data sheet, 80GB SXM"),
    "a100-pcie": _gpu("NVIDIA A100 80GB PCIe", 312, 19.5, 1.935, "NVIDIA A100 data sheet, 80GB PCIe"),
    "a100-40": _gpu("NVIDIA A100-SXM4-40GB", 312, 19.5, 1.555, "NVIDIA A100 data sheet, 40GB SXM"),
    "l4": _gpu("NVIDIA L4", 121, 30.3, 0.300, "NVIDIA L4 data sheet, half of its sparse figure"),
    "l40s": _gpu("NVIDIA L40S", 362, 91.6, 0.864, "NVIDIA L40S data sheet"),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 165.2, 82.6, 1.008, "NVIDIA Ada architecture white paper, fp32 accumulate"),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 989, 67, 3.35, "NVIDIA H100 data sheet, SXM, half of its sparse figure"),
    "h100-pcie": _gpu("NVIDIA H100 PCIe", 756, 51, 2.0, "NVIDIA H100 data sheet, PCIe, half of its sparse figure"),
    "h200": _gpu("NVIDIA H200", 989, 67, 4.8, "NVIDIA H200 data sheet, SXM, half of its sparse figure"),
    "b200": _gpu("NVIDIA B200", 2250, 80, 8.0, "NVIDIA Blackwell architecture technical brief, HGX B200"),
}  # fmt: skip


def find_device(name: str) -> Device:
    """A device of the table, or this machine's processor for `cpu`, which is measured. Raises `InputError`."""
    if name == HERE:
        return measured_cpu()
    if name not in DEVICES:
        raise InputError(
            f"device {name!r} is not known; known are {HERE} (this machine's, measured), {', '.join(DEVICES)}; choose "
            "one of them, or add it with its source to parure_bench.devices"
        )
    return DEVICES[name]


def device_called(driver_name: str) -> Device | None:
    """The device that the driver calls `driver_name`; None where the table has none of that name."""
    return next((device for device in DEVICES.values() if device.name == driver_name), None)


MATMUL_SIDE = 2048
COPIED_BYTES = 1 << 28
REPEATS = 5


def measured_cpu() -> Device:
    """This processor: the fastest of a few large matrix products and of a few copies, on all cores of this process.

    Products are numpy's and, where torch is installed, torch's; without torch bf16 counts as fp32.
    """
    single, half, by = _numpy_matmul(), 0.0, "numpy"
    try:
        import torch
    except ImportError:
        pass
    else:
        by = "numpy and torch"
        single = max(single, _torch_matmul(torch.float32))
        half = _torch_matmul(torch.bfloat16)
    source = f"measured here: {by} product of {MATMUL_SIDE} x {MATMUL_SIDE}, copy of {COPIED_BYTES >> 20} MiB"
    half = max(half, single)
    flops = {Precision.FP32: single, Precision.FP16: single, Precision.BF16: half}
    return Device("this processor", flops, _copy_bandwidth(), source)


def _numpy_matmul() -> float:
    left = np.random.default_rng(0).random((MATMUL_SIDE, MATMUL_SIDE), np.float32)
    return 2 * MATMUL_SIDE**3 / _least(lambda: left @ left)


def _torch_matmul(dtype: object) -> float:
    import torch

    left = torch.rand((MATMUL_SIDE, MATMUL_SIDE)).to(dtype)  # type: ignore[call-overload]
    with torch.no_grad():
        return 2 * MATMUL_SIDE**3 / _least(lambda: left @ left)


def _copy_bandwidth() -> float:
    """Bytes read and written in a second."""
    there, here = np.ones(COPIED_BYTES // 4, np.float32), np.zeros(COPIED_BYTES // 4, np.float32)
    return 2 * COPIED_BYTES / _least(lambda: np.copyto(here, there))


def _least(call: Callable[[], object]) -> float:
    call()
    taken = []
    for _ in range(REPEATS):
        since = time.perf_counter()
        call()
        taken.append(time.perf_counter() - since)
    return min(taken)
