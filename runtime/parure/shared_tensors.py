"""Large tensors of calls to a server on this host: in regions of shared memory instead of messages.

An output that the server wrote into a region comes back as an array on that region, and an array on a region, handed
in as an input, goes to the server as the region's name and offset. So what one component writes the next one reads,
and callers see arrays only. A region is lent until the last array on it is gone, and then used again.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from parure import regions
from parure.errors import (
    DeadlineExceeded,
    InputError,
    ModelUnavailable,
    ServerError,
    ServerUnavailable,
    SharedMemoryRefused,
)
from parure.executor import Array, Arrays
from parure.region_pool import RegionPool
from parure.regions import Place, Region, SystemRegion
from parure.triton_regions import Kind
from parure.triton_transport import Places, Transport, translated

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedMemory:
    """How an executor uses shared memory: for tensors of `least` bytes or more, `limit` bytes in all.

    Beyond the limit, and where the host has no room, tensors travel in messages, as they do without; a warning says
    so. `kind` is `system`, or `cuda`: memory of the GPU `device`, for tensors that stay there.
    """

    limit: int = 1 << 30
    least: int = 64 << 10
    kind: Kind = "system"
    device: int = 0

    def __post_init__(self) -> None:
        for name in ("limit", "least"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"shared memory: {name} is {value!r}; expected a number of bytes from 1 on")
        if self.kind not in ("system", "cuda"):
            raise InputError(f"shared memory: kind is {self.kind!r}; expected 'system' or 'cuda'")

    def make(self) -> Callable[[int], Region]:
        """What makes a region of a size."""
        if self.kind == "system":
            return SystemRegion
        from parure.cuda_regions import cuda_regions

        return cuda_regions(self.device)


class SharedTensors:
    """The regions of one executor, registered with its server. Safe to share between threads."""

    def __init__(self, transport: Transport, url: str, deadline: float, options: SharedMemory, first: int) -> None:
        """Register a region of `first` bytes, to learn whether the server allows it; remove what the dead left.

        Raises `SharedMemoryRefused`, and `InputError` where this host has no such memory.
        """
        self._transport = transport
        self._url = url
        self._deadline = deadline
        self._least = options.least
        self._server = ServerRegions(transport, url, deadline, options.kind)
        self._pool = RegionPool(options.limit, options.make(), self._server)
        self._close = weakref.finalize(self, self._pool.close)  # also when the interpreter ends
        self._constants: dict[int, Place] = {}
        self._warned = False
        until = time.monotonic() + deadline
        regions.sweep()
        try:
            if self._pool.lend(first, until) is None:
                raise InputError(
                    f"there is no room for {first} bytes of shared memory, with a limit of {options.limit}; make "
                    f"{regions.FOLDER} larger (containers: --shm-size), raise the limit, or go without shared memory"
                )
            self._server.sweep(until)
        except BaseException:
            self.close()
            raise

    def infer(self, model: str, inputs: Arrays, outputs: Mapping[str, int]) -> dict[str, Array]:
        """As `Transport.infer`; `outputs` are the bytes of each. Errors are translated.

        A server that was restarted has forgotten its regions: they are registered again and the call is repeated, once.
        """
        until = time.monotonic() + self._deadline
        read = {name: place for name, array in inputs.items() if (place := self._place(array, until))}
        write = {name: self._lend(size, until) for name, size in outputs.items()}
        written = [place.region for place in write.values() if place]
        try:
            try:
                return self._send(model, inputs, read, write, until)
            except ModelUnavailable:
                if not self._server.renew([*(place.region for place in read.values()), *written], until):
                    raise
                return self._send(model, inputs, read, write, until)
        except BaseException:
            self._pool.doubt(written)
            raise

    def close(self) -> None:
        """Release every region here and on the server; arrays on them stay valid."""
        self._close()

    def _send(self, model: str, inputs: Arrays, read: Places, write: Places, until: float) -> dict[str, Array]:
        for place in filter(None, write.values()):
            place.buffer.poison()
        with translated(f"model {model!r} at {self._url}", self._deadline):
            return self._transport.infer(model, inputs, read=read, write=write, timeout=_left(until))

    def _place(self, array: Array, until: float) -> Place | None:
        """Where `array` lies already, or a copy of it; None for one that travels in the message."""
        if array.nbytes < self._least:
            return None
        if place := self._pool.find(array) or self._constants.get(id(array)):
            return place
        if place := self._lend(array.nbytes, until):
            place.buffer.write(array)
            self._keep(array, place)
        return place

    def _keep(self, array: Array, place: Place) -> None:
        """Copy an array that cannot change only once: the loop's zeros come again at every step."""
        if array.base is None and not array.flags.writeable:
            self._constants[id(array)] = place
            weakref.finalize(array, self._constants.pop, id(array), None).atexit = False

    def _lend(self, size: int, until: float) -> Place | None:
        if size < self._least:
            return None
        place = self._pool.lend(size, until)
        if place is None and not self._warned:
            self._warned = True
            logger.warning("shared memory for %s is used up: large tensors travel in messages", self._url)
        return place


class ServerRegions:
    """What the server at `url` is told of regions; its refusal is made plain. A `Registrar`."""

    def __init__(self, transport: Transport, url: str, deadline: float, kind: Kind) -> None:
        self._transport = transport
        self._url = url
        self._deadline = deadline
        self._kind = kind

    def register(self, region: Region, until: float) -> None:
        try:
            with translated(f"shared memory at {self._url}", self._deadline):
                region.register(self._transport.regions, _left(until))
        except DeadlineExceeded:
            raise
        except ServerUnavailable as error:
            if self._transport.live():  # gRPC reports a restricted API as UNAVAILABLE, though it is permanent
                raise self._refusal(error) from error
            raise
        except ServerError as error:
            raise self._refusal(error) from error

    def unregister(self, region: Region, until: float) -> bool:
        return self._unregister(region.name, until)

    def renew(self, wanted: Iterable[Region], until: float) -> bool:
        """Register those of `wanted` that the server does not know; whether there were any."""
        with translated(f"shared memory at {self._url}", self._deadline):
            known = self._transport.regions.registered(self._kind, _left(until))
        missing = {region.name: region for region in wanted if region.name not in known}
        for region in missing.values():
            self.register(region, until)
        return bool(missing)

    def sweep(self, until: float) -> None:
        """Have the server forget regions of processes that ended without a word."""
        with translated(f"shared memory at {self._url}", self._deadline):
            known = self._transport.regions.registered(self._kind, _left(until))
        for name in known:
            if name.startswith(regions.PREFIX) and not regions.in_use(name):
                self._unregister(name, until)

    def _unregister(self, name: str, until: float) -> bool:
        try:
            with translated(f"shared memory at {self._url}", self._deadline):
                self._transport.regions.unregister(self._kind, name, _left(until))
        except (ServerUnavailable, DeadlineExceeded):
            raise
        except ServerError:
            return False  # it is in use
        return True

    def _refusal(self, error: ServerError) -> SharedMemoryRefused:
        return SharedMemoryRefused(
            f"the server does not take shared memory ({error}); start it with `parure serve --client-shared-memory` "
            "(Triton itself: --allow-client-shm=true from 26.04 on, its shared-memory API not restricted, as this "
            "user, and in a container with this host's /dev/shm: --ipc=host), or go without shared memory"
        )


def _left(until: float) -> float:
    """Seconds until then; raises `TimeoutError`, to be translated, where there are none."""
    if (seconds := until - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds
