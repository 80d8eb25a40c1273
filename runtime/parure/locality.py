"""Is a server on this host, and if it is not: what would the client loop send it?"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from parure.errors import InputError
from parure.manifest import Manifest
from parure.modes import DEEP_OUTPUT, SHALLOW_UNET


@dataclass(frozen=True)
class LoopCost:
    """Bytes of tensors that the client loop exchanges with a server for one picture, at most.

    `features` of them are packed features, both ways.
    """

    steps: int
    sent: int
    received: int
    features: int

    @property
    def total(self) -> int:
        return self.sent + self.received


def client_loop_cost(manifest: Manifest, steps: int | None = None, guidance: float | None = None) -> LoopCost:
    """What one picture costs in exact mode, with a new ornament and a mask that changes at every step.

    `steps` and `guidance` default to the bundle's.
    """
    loop = manifest.loop
    count = loop.default_steps if steps is None else steps
    guided = (loop.default_guidance if guidance is None else guidance) != 1.0
    calls = {"vae_encoder": 2, "reference_net": 1 + count, "mask_head": count, "unet": count * (1 + guided)}
    calls |= {SHALLOW_UNET: 0}
    sent = received = features = 0
    for component in manifest.components:
        times = calls.get(component.name, 1)
        sent += times * sum(t.nbytes for t in component.inputs)
        received += times * sum(t.nbytes for t in component.outputs if t.name != DEEP_OUTPUT)
        both = (*component.inputs, *component.outputs)
        features += times * sum(t.nbytes for t in both if t.shape == (manifest.features.length,))
    return LoopCost(count, sent, received, features)


def is_local(url: str) -> bool:
    """Whether every address of the URL's host is one of this host's own.

    An address that forwards elsewhere (a tunnel, a published port of a container) counts by where it begins. A host
    without an address is not local.
    """
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(_own(str(address[0])) for *_, address in found)


def require_consent(url: str, manifest: Manifest, *, allowed: bool) -> None:
    """Raises `InputError` where the client loop would ship features over a network and nobody agreed to that."""
    if allowed or is_local(url):
        return
    cost = client_loop_cost(manifest)
    raise InputError(
        f"the server at {url} is not on this host: the client loop would exchange {megabytes(cost.total)} with it for a "
        f"picture of {cost.steps} steps, {megabytes(cost.features)} of them features; run the loop where the server is, "
        "or say that the network may carry it: allow_wire_features=True, --allow-wire-features"
    )


def require_local(url: str) -> None:
    """Raises `InputError` where shared memory cannot reach the server."""
    if not is_local(url):
        raise InputError(
            f"the server at {url} is not on this host, so it cannot share memory; go without shared memory"
        )


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _own(address: str) -> bool:
    """Only an address of this host can be bound."""
    host = address.split("%")[0]
    if ipaddress.ip_address(host).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
