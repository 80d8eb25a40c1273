"""How a server is set up, as it tells itself: places of the server loop, batchers and instances of the components."""

from __future__ import annotations

from typing import Any

from parure.errors import ModelUnavailable
from parure.manifest import Manifest
from parure.triton_transport import open_transport, translated
from parure.tryon_wire import AT_WORK_PARAMETER, TRYON_MODEL, WAITING_PARAMETER
from parure_bench.record import Series

SERVED = "served"


def server_settings(url: str, manifest: Manifest, deadline: float) -> list[Series]:
    """A series `served` for the server loop, where there is one, and for every component: its numbers as figures."""
    found = []
    transport = open_transport(url, deadline)
    try:
        for name in (TRYON_MODEL, *(component.name for component in manifest.components)):
            try:
                with translated(f"model {name!r} at {url}", deadline):
                    config = transport.config(name)
            except ModelUnavailable:
                continue
            figures = _places(config) if name == TRYON_MODEL else _batching(config)
            found.append(Series(name=SERVED, labels={"model": name}, unit="", figures=figures))
    finally:
        transport.close()
    return found


def _parameters(config: dict[str, Any]) -> dict[str, str]:
    return {key: str(value["string_value"]) for key, value in config.get("parameters", {}).items()}


def _places(config: dict[str, Any]) -> dict[str, float]:
    parameters = _parameters(config)
    return {name: float(parameters[name]) for name in (AT_WORK_PARAMETER, WAITING_PARAMETER) if name in parameters}


def _batching(config: dict[str, Any]) -> dict[str, float]:
    """`preferred.4`: 4 is a preferred batch size. `threads` 0: all cores."""
    batching = config.get("dynamic_batching", {})
    groups = config.get("instance_group", [])
    figures = {
        "max_batch": float(config.get("max_batch_size", 0)),
        "queue_delay": float(batching.get("max_queue_delay_microseconds", 0)) / 1e6,
        "instances": float(sum(int(group.get("count", 1)) for group in groups) or 1),
    }
    if (threads := _parameters(config).get("threads")) is not None:
        figures["threads"] = float(threads)
    return figures | {f"preferred.{size}": float(size) for size in batching.get("preferred_batch_size", [])}
