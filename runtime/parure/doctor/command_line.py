"""What a server of this host was started with: some flags cannot be told from its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from parure.finding import Finding

_LISTENING = "0A"
_PROCESSES = Path("/proc")


def command_line(port: int) -> list[str]:
    """Of the process that listens at `port`; empty where it cannot be seen: of another user, container or system."""
    sockets = set(_listening_sockets(port))
    if not sockets:
        return []
    for process in _PROCESSES.glob("[0-9]*"):
        try:
            if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                return (process / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
        except OSError:  # it ended, or is another user's
            continue
    return []


def unsafe_flags(arguments: Sequence[str]) -> Iterator[Finding]:
    """Of `tritonserver`; nothing for a process that is something else."""
    if not arguments or Path(arguments[0]).name != "tritonserver":
        return
    flags = {name: value for name, _, value in (argument.partition("=") for argument in arguments[1:])}
    closed = "--disable-auto-complete-config" in flags
    yield Finding(
        "auto-complete",
        True if closed else None,
        "off" if closed else "on: the server adds to configurations what it thinks is missing",
        "" if closed else "start it with --disable-auto-complete-config",
    )
    strict = flags.get("--strict-readiness", "true") not in ("false", "0")
    yield Finding(
        "strict readiness",
        True if strict else None,
        "on" if strict else "off: the server says that it is ready while models are not",
        "" if strict else "start it with --strict-readiness=true",
    )
    if flags.get("--model-control-mode") == "poll":
        found = "poll: whoever can write to the repository can replace models"
        yield Finding("model control mode", False, found, "start the server with --model-control-mode=none")


def _listening_sockets(port: int) -> Iterator[str]:
    """As the links in /proc/PID/fd name them."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROCESSES / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{fields[9]}]"
