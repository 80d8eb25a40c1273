"""Where a measurement was taken: processor, GPUs with clocks and throttling, library versions, commit, bundle."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field

from parure.host import gpus as driver_gpus
from parure.host import installed
from parure.manifest import Frozen

LIBRARIES = (
    "parure", "numpy", "torch", "diffusers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt-rtx-cu12", "polygraphy", "tritonclient", "nvidia-pytriton", "pillow",
)  # fmt: skip
GB = 1e9


class GpuState(Frozen):
    """One GPU at one moment. None: it could not be read, and `unreadable` says why."""

    name: str
    driver: str
    memory_bytes: int
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttled: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


class Environment(Frozen):
    """`bundle` is the identity of the bundle that was measured; `commit` that of parure's own working tree, with
    `-dirty` where it was changed, None for an installed wheel."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    python: str
    gpus: tuple[GpuState, ...] = ()
    libraries: dict[str, str] = Field(default={})
    commit: str | None = None
    bundle: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def processor(self) -> str:
        return f"{self.cpu}, {self.cores} cores"

    @property
    def device(self) -> str:
        """The first GPU where there is one, or the processor."""
        return self.gpus[0].name if self.gpus else self.processor


def environment(bundle: str | None = None) -> Environment:
    """Of this machine, now; `bundle` is the identity of the bundle that is measured."""
    found, notes = gpu_states()
    return Environment(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(psutil.virtual_memory().total / GB, 1),
        system=platform.system(),
        python=platform.python_version(),
        gpus=found,
        libraries={name: version for name in LIBRARIES if (version := installed(name)) is not None},
        commit=commit(),
        bundle=bundle,
        notes=notes,
    )


def gpu_states() -> tuple[tuple[GpuState, ...], tuple[str, ...]]:
    """The GPUs of this machine and what could not be read of them. Never raises: a benchmark goes on without."""
    try:
        import pynvml
    except ImportError:
        plain = tuple(GpuState(name=g.name, driver=g.driver, memory_bytes=g.memory) for g in driver_gpus())
        return plain, ("no clocks or temperatures: nvidia-ml-py is not installed",) if plain else ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return (), () if error.value in absent else (f"GPUs cannot be read: {error}",)
    try:
        states = tuple(_gpu_state(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return (), (f"GPUs cannot be read: {error}",)
    finally:
        pynvml.nvmlShutdown()
    notes = tuple(f"{s.name}: {what}" for s in states for what in s.unreadable)
    return states, notes


def _gpu_state(nvml: Any, index: int) -> GpuState:
    """Every counter by itself: a driver that withholds one (permission, virtual GPU) still gives the others."""
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    unreadable: list[str] = []

    def read(what: str, counter: Callable[[], Any]) -> Any:
        try:
            return counter()
        except nvml.NVMLError as error:
            unreadable.append(f"{what} cannot be read ({error})")
            return None

    power = read("power", lambda: nvml.nvmlDeviceGetPowerUsage(gpu))
    reasons = read("throttling", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
    return GpuState(
        name=nvml.nvmlDeviceGetName(gpu),
        driver=nvml.nvmlSystemGetDriverVersion(),
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(gpu).total,
        sm_clock_mhz=read("SM clock", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        max_sm_clock_mhz=read("largest SM clock", lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=read("memory clock", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
        temperature_c=read("temperature", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        power_w=None if power is None else power / 1000,
        throttled=_throttled(nvml, reasons or 0),
        unreadable=tuple(unreadable),
    )


def _throttled(nvml: Any, reasons: int) -> tuple[str, ...]:
    """The reasons for lower clocks, but for an idle GPU and clocks that somebody set."""
    prefix = "nvmlClocksThrottleReason"
    passed = {"None", "All", "GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks"}
    known = {name.removeprefix(prefix): getattr(nvml, name) for name in dir(nvml) if name.startswith(prefix)}
    return tuple(sorted(name for name, bit in known.items() if name not in passed and reasons & bit))


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def commit() -> str | None:
    """The commit that this very file belongs to; a repository that parure is merely installed in does not count."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        ours = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=False)
        if ours.returncode:
            return None
        told = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return told.stdout.strip() or None
