"""What a record says of its machine, also where a driver tells little."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from parure_bench.environment import commit, environment, gpu_states


class Denied(Exception):
    """As NVML raises it."""

    def __init__(self, value: int = 4) -> None:
        super().__init__("Insufficient Permissions")
        self.value = value


def fake_nvml(**changes: Any) -> SimpleNamespace:
    def denied(*_: object) -> None:
        raise Denied

    nvml = SimpleNamespace(
        NVMLError=Denied, NVML_ERROR_LIBRARY_NOT_FOUND=12, NVML_ERROR_DRIVER_NOT_LOADED=9,
        NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0,
        nvmlClocksThrottleReasonNone=0, nvmlClocksThrottleReasonGpuIdle=1, nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetName=lambda gpu: "NVIDIA H200",
        nvmlSystemGetDriverVersion=lambda: "580.1", nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(total=1 << 37),
        nvmlDeviceGetClockInfo=lambda gpu, which: 1980, nvmlDeviceGetMaxClockInfo=lambda gpu, which: 1980,
        nvmlDeviceGetTemperature=lambda gpu, which: 61, nvmlDeviceGetPowerUsage=denied,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 5,
    )  # fmt: skip
    vars(nvml).update(changes)
    return nvml


def test_clocks_temperature_and_throttling_of_a_gpu_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    (gpu,), _ = gpu_states()
    assert (gpu.name, gpu.sm_clock_mhz, gpu.temperature_c) == ("NVIDIA H200", 1980, 61)
    assert gpu.throttled == ("SwPowerCap",)
    assert environment().device == "NVIDIA H200"


def test_counters_without_permission_are_said_and_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    (gpu,), notes = gpu_states()
    assert gpu.power_w is None
    assert notes == ("NVIDIA H200: power cannot be read (Insufficient Permissions)",)


@pytest.mark.parametrize(("code", "notes"), [(9, 0), (12, 0), (4, 1)])
def test_a_machine_without_a_driver_has_no_gpu_and_one_that_denies_all_is_noted(
    code: int, notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise Denied(code)

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=refuse))
    assert gpu_states()[0] == () and len(gpu_states()[1]) == notes


def test_without_the_library_a_machine_still_describes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = environment("identity")
    assert found.bundle == "identity" and found.cores >= 1 and found.libraries["numpy"]
    assert found.gpus or found.device == f"{found.cpu}, {found.cores} cores"


def test_the_commit_is_that_of_this_code_or_none() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
