"""Peak memory of one component, in a process of its own: `python -m parure_bench.memory BUNDLE BACKEND COMPONENT BATCH`.

What it prints is the growth of the process (or of the GPU's used memory) from before the component was opened to its
peak over two calls: weights, what the backend makes of them, and activations.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import psutil

from parure.bundle import Bundle
from parure.errors import ParureError
from parure.tryon import Backend, open_executor
from parure_bench.tensors import random_inputs

KIB = 1024


def peak_bytes(bundle: Path, backend: str, component: str, batch: int) -> int:
    """Of a fresh process; raises `ParureError` with what that process said where it failed."""
    command = [sys.executable, "-m", "parure_bench.memory", str(bundle), backend, component, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ParureError(f"measuring the memory of {component} on {backend} failed: {last}")
    return int(done.stdout.split()[-1])


def main(root: Path, backend: Backend, name: str, batch: int) -> None:
    bundle = Bundle.open(root)
    inputs = random_inputs(bundle.manifest.component(name), batch)
    executor = open_executor(bundle, None, backend)
    before, gpu_before = psutil.Process().memory_info().rss, gpu_used()
    for _ in range(2):
        executor.run(name, inputs)
    grown = peak_resident() - before
    print(max(gpu_used() - gpu_before, 0) or max(grown, 0))


def peak_resident() -> int:
    """Of this process since it began; `ru_maxrss` would also know the process that it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith("VmHWM:")), 0)


def gpu_used() -> int:
    """Used bytes of the first GPU; 0 where there is none, or it does not tell."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    except (ImportError, pynvml.NVMLError):
        return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast(Backend, sys.argv[2]), sys.argv[3], int(sys.argv[4]))
