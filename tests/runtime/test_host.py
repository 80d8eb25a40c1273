"""What `nvidia-smi` says, read."""

from __future__ import annotations

import pytest

from parure import host
from parure.host import Gpu, parse_gpus


def test_gpus_are_read_from_the_drivers_table() -> None:
    table = "NVIDIA A100-SXM4-80GB, 8.0, 580.12, 81920\nNVIDIA L4, 8.9, 580.12, 23034\n"
    assert parse_gpus(table) == [
        Gpu("NVIDIA A100-SXM4-80GB", (8, 0), "580.12", 81920 * 2**20),
        Gpu("NVIDIA L4", (8, 9), "580.12", 23034 * 2**20),
    ]


@pytest.mark.parametrize("table", ["", "No devices were found\n", "a, b, c, d\n", "L4, 8.9\n", "L4, x.y, 1, 2\n"])
def test_what_is_no_table_names_no_gpu(table: str) -> None:
    assert parse_gpus(table) == []


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.shutil, "which", lambda name: None)
    assert host.gpus() == []
