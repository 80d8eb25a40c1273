"""What a job is: the content of its inputs, its parameters, and the bundle. Equal keys mean equal pictures."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass

from parure.batch.files import read_picture
from parure.batch.jobs import Job
from parure.manifest import Manifest
from parure.modes import EXACT

_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class Content:
    """A file's bytes and their sha256."""

    data: bytes
    digest: str

    @classmethod
    def of(cls, data: bytes) -> Content:
        return cls(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Inputs:
    """The pictures of one job, still encoded."""

    photo: Content
    ornament: Content
    ornament_mask: Content | None

    @property
    def mask_data(self) -> bytes | None:
        return None if self.ornament_mask is None else self.ornament_mask.data


class Reader:
    """Reads the inputs of jobs; ornaments, which come again and again, are kept. Safe to share between threads."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._limit = kept_bytes
        self._kept: OrderedDict[str, Content] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, job: Job) -> Inputs:
        """Raises `ImageError` for a file that is not there, `StorageError` where reading fails."""
        return Inputs(
            photo=Content.of(read_picture(job.photo, "photo")),
            ornament=self._ornament(job.ornament, "ornament"),
            ornament_mask=None if job.ornament_mask is None else self._ornament(job.ornament_mask, "ornament mask"),
        )

    def _ornament(self, path: str, subject: str) -> Content:
        with self._lock:
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
        content = Content.of(read_picture(path, subject))
        with self._lock:
            if path not in self._kept and len(content.data) <= self._limit:
                self._kept[path] = content
                self._bytes += len(content.data)
            while self._bytes > self._limit:
                self._bytes -= len(self._kept.popitem(last=False)[1].data)
        return content


def job_key(job: Job, inputs: Inputs, manifest: Manifest, identity: str) -> str:
    """32 hexadecimal digits. A parameter that is left out counts as the bundle's default; paths and ids do not count."""
    loop = manifest.loop
    parts = [
        identity,
        inputs.photo.digest,
        inputs.ornament.digest,
        inputs.ornament_mask and inputs.ornament_mask.digest,
        [float(side) for side in job.box],
        job.seed,
        loop.default_steps if job.steps is None else job.steps,
        job.solver or loop.default_solver,
        float(loop.default_guidance if job.guidance is None else job.guidance),
        *([] if job.mode in (None, str(EXACT)) else [job.mode]),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
