"""Which servers are on this host, and what the client loop costs where one is not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from parure.bundle import Bundle
from parure.errors import InputError
from parure.locality import client_loop_cost, is_local, require_consent, require_local


def own_address() -> str:
    """The address that this host would send from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no route, hence no address of its own but loopback")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    "url", ["grpc://127.0.0.1:8001", "http://127.8.9.10:8000", "grpc://localhost", "grpc://[::1]:8001"]
)
def test_loopback_is_local(url: str) -> None:
    assert is_local(url)


def test_an_address_of_this_hosts_own_interfaces_is_local() -> None:
    assert is_local(f"grpc://{own_address()}:8001")


@pytest.mark.parametrize("url", ["grpc://192.0.2.1:8001", "http://[2001:db8::1]:8000", "grpc://nowhere.invalid:8001"])
def test_other_addresses_are_not_local(url: str) -> None:
    assert not is_local(url)


def test_the_cost_counts_features_both_ways_at_every_step(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    feature = manifest.features.length * 4
    plain, guided = (client_loop_cost(manifest, 10, guidance) for guidance in (1.0, 2.0))
    assert plain.features == feature * (11 + 10 * 2 + 10 * 2)  # reference_net out; mask_head and unet in, two each
    assert guided.features == plain.features + feature * 20
    assert plain.features < plain.total == plain.sent + plain.received
    default = client_loop_cost(manifest)
    assert default == client_loop_cost(manifest, manifest.loop.default_steps, manifest.loop.default_guidance)


def test_consent_is_asked_with_the_cost_and_the_remedy(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    cost = client_loop_cost(manifest)
    with pytest.raises(InputError) as asked:
        require_consent("grpc://192.0.2.1:8001", manifest, allowed=False)
    for words in ("192.0.2.1", f"{cost.total / 1e6:.1f} MB", f"{cost.steps} steps", "allow_wire_features=True"):
        assert words in str(asked.value)
    require_consent("grpc://192.0.2.1:8001", manifest, allowed=True)
    require_consent("grpc://127.0.0.1:8001", manifest, allowed=False)


def test_memory_is_shared_on_this_host_only() -> None:
    require_local("grpc://127.0.0.1:8001")
    with pytest.raises(InputError, match=r"192\.0\.2\.1.* not on this host"):
        require_local("grpc://192.0.2.1:8001")
