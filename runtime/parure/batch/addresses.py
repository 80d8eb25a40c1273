"""The endpoints of a batch: by flag, from a file, or behind a DNS name; the latter two may grow while it runs."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from parure.errors import InputError
from parure.triton_transport import DEFAULT_PORTS, open_transport

DNS = "dns+"


def endpoint_urls(given: Sequence[str], file: Path | None) -> list[str]:
    """Every address once, in order. `dns+grpc://NAME:PORT` is every address that NAME has now.

    Raises `InputError` for what is no URL of a server, for a file that cannot be read, and where nothing is left.
    """
    found: dict[str, None] = {}
    for url in [*given, *(() if file is None else _listed(file))]:
        for address in _resolved(url) if url.startswith(DNS) else [url]:
            open_transport(address, 1.0).close()
            found[address.rstrip("/")] = None
    if not found:
        raise InputError("no endpoint is given; name one with --endpoint grpc://HOST:PORT, or in --endpoints-file")
    return list(found)


def _listed(file: Path) -> Iterator[str]:
    """One URL per line; what follows a # is a comment."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the endpoints file {file} cannot be read ({error}); check the path") from error
    yield from (url for line in lines if (url := line.split("#")[0].strip()))


def _resolved(url: str) -> Iterator[str]:
    """One URL per address; none where the name has no address at the moment."""
    bare = url.removeprefix(DNS)
    parts = urlsplit(bare)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise InputError(f"{url!r} is not the name of servers; expected dns+grpc://NAME:PORT or dns+http://NAME:PORT")
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError:
        return
    for *_, address in sorted(found):
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        yield f"{parts.scheme}://{host}:{port}"
