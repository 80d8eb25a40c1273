"""The flags of a locked-down Triton: one source for the embedded server and for deployments.

Clients may infer, and ask for health, metadata and configuration. Whatever changes the server, or tells about other
callers, needs the header `ADMIN_HEADER` with the administrator's key.
"""

from __future__ import annotations

ADMIN_HEADER = "parure"
CLOSED_APIS = ("shared-memory", "model-repository", "statistics", "trace", "logging")


def locked_down(admin_key: str, drain_seconds: int | str, *, client_shared_memory: bool = False) -> list[str]:
    """What every server of parure is started with, whatever its version.

    Models are those of the repository, loaded once, configured as written. The server is ready only when all of them
    are, and after SIGTERM calls in flight have `drain_seconds` (a number, or what a template puts there).
    `client_shared_memory` lets clients on the same host register regions: for trusted ones only.
    """
    closed = [api for api in CLOSED_APIS if not (client_shared_memory and api == "shared-memory")]
    restricted = f"{','.join(closed)}:{ADMIN_HEADER}={admin_key}"
    return [
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        f"--exit-timeout-secs={drain_seconds}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
    ]


def container_only(http_input_bytes: int, response_pool: int, *, client_shared_memory: bool = False) -> list[str]:
    """What Triton 26.06 takes and the embedded server (2.51) does not know yet: bounds, and shared memory shut."""
    return [
        f"--http-max-input-size={http_input_bytes}",
        f"--grpc-max-response-pool-size={response_pool}",
        f"--allow-client-shm={str(client_shared_memory).lower()}",
    ]
