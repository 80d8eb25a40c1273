"""An endpoint: does it answer, is it new enough, is it shut, does it tell its metrics, and is its clock right?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from parure.doctor.command_line import command_line, unsafe_flags
from parure.doctor.management import open_apis
from parure.errors import ParureError
from parure.finding import Finding
from parure.health import probe
from parure.locality import is_local
from parure.triton_transport import DEFAULT_PORTS, open_transport, translated

FLOOR = (2, 70)  # of container 26.06: the repairs of 2025, and client shared memory shut by default
FLOOR_CONTAINER = "26.06"
_SKEW_SECONDS = 5.0
_OUR_METRIC = "parure_pictures_total"


def examine_endpoint(url: str, deadline: float, metrics_port: int) -> Iterator[Finding]:
    """The server at `url`, seen from here. `deadline`, in seconds, bounds each call. Raises `InputError` for a bad URL."""
    transport = open_transport(url, deadline)
    try:
        if not transport.live():
            remedy = "start it with `parure serve MODEL_REPOSITORY`; is it this host and port, and no firewall between?"
            yield Finding("server", False, f"nothing answers at {url} within {deadline:g} s", remedy)
            return
        try:
            with translated(f"the server at {url}", deadline):
                yield version(transport.version(), local=is_local(url))
        except ParureError as error:
            yield Finding("version", False, str(error))
    finally:
        transport.close()
    yield from probe(url, deadline)
    yield from open_apis(url, deadline)
    yield from _started_with(url)
    yield metrics(url, deadline, metrics_port)
    yield from clock(url, deadline)


def version(told: str, *, local: bool) -> Finding:
    """`local`: an old server that nobody else reaches, such as the embedded one, is only a warning."""
    try:
        known = tuple(int(part) for part in told.split(".")[:2])
    except ValueError:
        return Finding("version", None, f"{told!r}, which is not Triton's way to tell it")
    if known >= FLOOR:
        return Finding("version", True, f"Triton {told}")
    wanted = ".".join(map(str, FLOOR))
    return Finding(
        "version",
        None if local else False,
        f"Triton {told} is older than {wanted}, which repaired holes that clients could use",
        f"in production serve with NVIDIA's container {FLOOR_CONTAINER} or newer (`parure repo --deploy`)",
    )


def metrics(url: str, deadline: float, port: int) -> Finding:
    host = urlsplit(url).hostname
    subject, place = "metrics", f"http://{host}:{port}/metrics"
    try:
        with urllib3.PoolManager() as connections:
            reply = connections.request("GET", place, timeout=deadline, retries=False)
    except (HTTPError, OSError):
        remedy = "name the port with --metrics-port; the server shows none with --allow-metrics=false"
        return Finding(subject, None, f"nothing answers at {place}", remedy)
    text = reply.data.decode(errors="replace")
    if reply.status != 200 or "nv_inference" not in text:
        return Finding(
            subject, None, f"{place} is not Triton's (HTTP {reply.status})", "name its port with --metrics-port"
        )
    ours = _OUR_METRIC in text
    return Finding(subject, True, f"{place}, {'with' if ours else 'without'} the server loop's")


def clock(url: str, deadline: float) -> Iterator[Finding]:
    """By the reply's Date, which a proxy before Triton sends; Triton sends none, and nothing is said then."""
    parts = urlsplit(url)
    if parts.scheme != "http":
        return
    place = f"http://{parts.hostname}:{parts.port or DEFAULT_PORTS['http']}/v2/health/live"
    before = time.time()
    try:
        with urllib3.PoolManager() as connections:
            told = connections.request("GET", place, timeout=deadline, retries=False).headers.get("Date")
        theirs = parsedate_to_datetime(told).timestamp() if told else None
    except (HTTPError, OSError, ValueError):
        return
    if theirs is None:
        return
    apart = theirs - (before + time.time()) / 2  # a Date has whole seconds
    found = f"{apart:+.0f} s from this machine's"
    if abs(apart) <= _SKEW_SECONDS:
        yield Finding("clock", True, found)
    else:
        yield Finding("clock", None, f"{found}: logs and traces do not line up", "keep both with chrony")


def _started_with(url: str) -> Iterator[Finding]:
    """What only the server's command line tells: for a server that runs on this host, under this user."""
    if is_local(url) and (arguments := command_line(urlsplit(url).port or DEFAULT_PORTS[urlsplit(url).scheme])):
        yield from unsafe_flags(arguments)
