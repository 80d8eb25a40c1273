"""This machine: GPUs, memory that processes share, disk, limits, ports, clock."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from parure.doctor.software import examine_software
from parure.finding import Finding
from parure.host import Gpu, gpus

SHARED_MEMORY = Path("/dev/shm")
PCI_DEVICES = Path("/sys/bus/pci/devices")
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # vendor, and the class that GPUs begin with
_MiB, _GiB = 1 << 20, 1 << 30
_LEAST_SHARED = 256 * _MiB  # Triton's python backend begins with 1 MiB per process and grows with the tensors
_LEAST_DISK, _LITTLE_DISK = 1 * _GiB, 10 * _GiB
_LEAST_FILES, _FEW_FILES = 1024, 4096
_CUDA = 12  # what the wheels of TensorRT-RTX and ONNX Runtime are made for
_TICK_SECONDS, _JUMP_SECONDS = 0.2, 0.05
_BUILT = 1767225600.0  # 2026-01-01: no machine that has this code is older


def examine_machine() -> Iterator[Finding]:
    """Everything that can be said without a server."""
    here = gpus()
    yield from examine_software(here)
    yield graphics(here)
    yield from driver()
    yield shared_memory(SHARED_MEMORY)
    for place in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir()))):
        yield disk(place)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield from ports(PORTS)
    yield clock()


def graphics(here: Sequence[Gpu]) -> Finding:
    if here:
        found = (f"{gpu.name}, sm{gpu.capability[0]}{gpu.capability[1]}, {gpu.memory / _GiB:.0f} GiB" for gpu in here)
        return Finding("GPU", True, "; ".join(found))
    if count := sum(map(_is_gpu, PCI_DEVICES.glob("*"))):
        return Finding(
            "GPU",
            None,
            f"{count} of NVIDIA's on the bus, and no driver answers",
            "install NVIDIA's driver, or start the container with its GPUs (`--gpus all`)",
        )
    return Finding("GPU", True, "none; components run on ONNX Runtime's CPU kernels")


def _is_gpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


def driver() -> Iterator[Finding]:
    """NVIDIA's driver, by its own library; nothing where that is not installed, or where there is no driver."""
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
    except Exception:  # no package, no library, no driver, no permission: what `graphics` says holds
        return
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000
    finally:
        pynvml.nvmlShutdown()
    enough = cuda >= _CUDA
    remedy = "" if enough else f"install a driver for CUDA {_CUDA} or newer"
    yield Finding("NVIDIA driver", enough, f"{version}, CUDA up to {cuda}", remedy)


def shared_memory(place: Path) -> Finding:
    subject = f"shared memory {place}"
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return Finding(subject, False, f"not there ({error.strerror})", "mount a tmpfs there; Triton cannot do without")
    found = f"{usage.total / _MiB:,.0f} MiB, {usage.free / _MiB:,.0f} free"
    if usage.total < _LEAST_SHARED:
        remedy = "give the container more: `docker run --shm-size 1g`; in Kubernetes an emptyDir with medium Memory"
        return Finding(subject, False, found, remedy)
    if usage.free < _LEAST_SHARED:
        remedy = (
            "servers that were killed leave theirs behind: stop all, then remove triton_python_backend_shm_region_*"
        )
        return Finding(subject, None, found, remedy)
    return Finding(subject, True, found)


def disk(place: Path) -> Finding:
    subject = f"disk {place}"
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Finding(subject, None, "not writable", "work in a folder that you may write to")
    passed = True if free >= _LITTLE_DISK else None if free >= _LEAST_DISK else False
    remedy = "" if passed else "make room: a bundle of SD 1.5 size has 5 GB, its engines as much again per GPU"
    return Finding(subject, passed, f"{free / _GiB:,.1f} GiB free", remedy)


def open_files(limit: int) -> Finding:
    if limit == resource.RLIM_INFINITY or limit >= _FEW_FILES:
        return Finding("open files", True, "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit:,}")
    passed = None if limit >= _LEAST_FILES else False
    remedy = "raise it: `ulimit -n 65536`; every connection of a client, and every region of shared memory, is one"
    return Finding("open files", passed, f"at most {limit:,}", remedy)


def ports(wanted: dict[str, int]) -> Iterator[Finding]:
    """Whether a server could listen where servers listen by default."""
    for name, port in wanted.items():
        with ExitStack() as stack:
            try:
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                remedy = f"if that is no server of yours, stop it, or choose another with --{name}-port"
                yield Finding(f"port {port} ({name})", None, f"taken ({error.strerror})", remedy)
                continue
        yield Finding(f"port {port} ({name})", True, "free")


def clock() -> Finding:
    """Whether wall clock and monotonic clock go alike, and the wall clock's year can be."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(_TICK_SECONDS)
    apart = (time.time() - wall) - (time.monotonic() - steady)
    remedy = "keep it with chrony or systemd-timesyncd"
    told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall))
    if wall < _BUILT:
        return Finding("clock", False, f"{told}, which cannot be; object stores refuse what is signed then", remedy)
    if abs(apart) > _JUMP_SECONDS:
        return Finding("clock", None, f"it jumped by {apart:+.3f} s within {_TICK_SECONDS} s", remedy)
    return Finding("clock", True, f"{told}, steady")
