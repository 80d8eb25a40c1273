"""What makes a picture: read the inputs, ask a server, keep the result. Here: in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

from PIL import Image

from parure.batch.endpoint import Connection
from parure.batch.jobs import Job
from parure.batch.keys import Inputs, Reader, job_key
from parure.batch.store import Store
from parure.manifest import Manifest
from parure.tryon import Result, TryOn

PICTURES, MASKS = "pictures", "masks"
_COMPRESSION = 4


@dataclass(frozen=True)
class Prepared:
    """A job whose inputs have been read: here, or by the `worker` of that number."""

    key: str
    inputs: Inputs | None = None
    worker: int | None = None


@dataclass(frozen=True)
class Made:
    """A picture that is kept: names in the store, seconds by part of the work, and the number of steps."""

    picture: str
    mask: str
    seconds: Mapping[str, float]
    steps: int


class Engine(Protocol):
    """Safe to share between threads."""

    def prepare(self, job: Job) -> Prepared:
        """Raises `InputError` for inputs that are wrong, `StorageError` where they cannot be read."""

    def make(self, job: Job, prepared: Prepared, url: str, connection: Connection) -> Made:
        """Raises `InputError`, `ServerError`, `StorageError`."""

    def close(self) -> None: ...


class LocalEngine:
    """Threads of this process: decoding and encoding go on while servers work."""

    def __init__(self, store: Store, manifest: Manifest, identity: str) -> None:
        self._store, self._manifest, self._identity = store, manifest, identity
        self._reader = Reader()

    def prepare(self, job: Job) -> Prepared:
        inputs = self._reader.read(job)
        return Prepared(job_key(job, inputs, self._manifest, self._identity), inputs)

    def make(self, job: Job, prepared: Prepared, url: str, connection: Connection) -> Made:
        assert prepared.inputs is not None
        result = ask(connection.tryon, job, prepared.inputs)
        return keep(self._store, output_name(job, prepared.key), result)

    def close(self) -> None:
        pass


def ask(tryon: TryOn, job: Job, inputs: Inputs) -> Result:
    return tryon(**asked(job, inputs))


def asked(job: Job, inputs: Inputs) -> dict[str, Any]:
    """What a job asks for, by the names that `TryOn` and `Asked` take."""
    return {
        "photo": inputs.photo.data,
        "ornament": inputs.ornament.data,
        "box": job.box,
        "ornament_mask": inputs.mask_data,
        "steps": job.steps,
        "seed": job.seed,
        "solver": job.solver,
        "guidance": job.guidance,
        "mode": job.mode,
    }


def keep(store: Store, name: str, result: Result) -> Made:
    """The picture goes last: where there is one, its mask is there, too."""
    picture, mask = f"{PICTURES}/{name}.png", f"{MASKS}/{name}.png"
    store.put({mask: _png(result.mask), picture: _png(result.image)})
    seconds = {part: round(value, 5) for part, value in result.timings.items()}
    return Made(picture, mask, seconds, len(result.masks))


def output_name(job: Job, key: str) -> str:
    """Other content has another name, even under the same id: nothing that was recorded is ever written over."""
    return key if job.id is None else f"{job.id}-{key[:12]}"


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, format="PNG", compress_level=_COMPRESSION)
    return stream.getvalue()
