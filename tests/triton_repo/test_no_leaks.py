"""Promise 20: a client that makes small calls for ever does not grow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from parure_triton.server import EmbeddedServer

pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
CLIENT = """
import gc, sys
import numpy as np
import psutil
from parure.triton import TritonExecutor

url, calls = sys.argv[1], int(sys.argv[2])
inputs = {"features": np.ones((1, 16), np.float16)}

def held():
    gc.collect()
    return psutil.Process().memory_info().rss

with TritonExecutor(url, deadline=30) as executor:
    for _ in range(calls // 5):
        executor.run("mask_head", inputs)
    before = held()
    for _ in range(calls):
        executor.run("mask_head", inputs)
    print(held() - before)
"""


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize(
    ("calls", "most"),
    [(2_000, 4e6), pytest.param(100_000, 1e6, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_many_small_calls_leave_the_client_as_large_as_it_was(
    calls: int, most: float, scheme: str, server: EmbeddedServer
) -> None:
    command = [sys.executable, "-c", CLIENT, getattr(server.addresses, scheme), str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= most
