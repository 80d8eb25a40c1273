"""What this machine offers a bundle: GPUs, as the driver tells, and installed runtimes."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

TENSORRT_PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu12"}
_ASKED = ("name", "compute_cap", "driver_version", "memory.total")


@dataclass(frozen=True)
class Gpu:
    """One GPU; `capability` such as (8, 0), `memory` in bytes."""

    name: str
    capability: tuple[int, int]
    driver: str
    memory: int


def gpus() -> list[Gpu]:
    """The GPUs of this machine; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse_gpus(asked.stdout) if asked.returncode == 0 else []


def parse_gpus(table: str) -> list[Gpu]:
    """`nvidia-smi`'s lines of name, capability, driver and memory in MiB; lines of another form are passed over."""
    found = []
    for row in csv.reader(io.StringIO(table), skipinitialspace=True):
        try:
            name, capability, driver, memory = row
            major, minor = capability.split(".")
            found.append(Gpu(name, (int(major), int(minor)), driver, int(memory) * 1024 * 1024))
        except ValueError:
            continue
    return found


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
