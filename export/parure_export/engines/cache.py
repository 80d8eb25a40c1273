"""Engines that were built before, by everything they depend on. Safe for builds that race, and for builds that die."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from parure.bundle import sha256_of
from parure.engine import EngineRecord, open_record
from parure.errors import BundleError, InputError

PLAN = "engine.plan"
_DIGEST = hashlib.sha256().digest_size


def default_cache() -> Path:
    """`$PARURE_CACHE/engines`, or the user's cache folder."""
    base = os.environ.get("PARURE_CACHE")
    if base:
        return Path(base) / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parure" / "engines"


@dataclass(frozen=True)
class EngineCache:
    """One folder an engine, named by its key, which holds the plan and its record; complete or not there at all."""

    root: Path

    def prepare(self) -> None:
        """Raises `InputError` for a folder that cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise InputError(
                f"engine cache {self.root} cannot be written ({error.strerror}); name another folder with --cache or "
                "PARURE_CACHE"
            ) from error

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Of two builds of one engine the second waits, and then finds it. The lock dies with its process."""
        with FileLock(self.root / f"{key}.lock"):
            yield

    def find(self, key: str) -> tuple[Path, EngineRecord] | None:
        """Plan and record of `key`; an entry that is not whole is removed, and not found."""
        plan = self.root / key / PLAN
        try:
            record = open_record(plan)
            if plan.is_file() and sha256_of(plan) == record.plan_sha256 and record.key == key:
                return plan, record
        except BundleError:
            pass
        shutil.rmtree(self.root / key, ignore_errors=True)
        return None

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder for one build, gone afterwards unless `keep` has moved it."""
        with tempfile.TemporaryDirectory(prefix="building-", dir=self.root, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def keep(self, plan: Path, record: EngineRecord) -> Path:
        """Make plan and record the entry of the record's key, at once."""
        entry = self.root / record.key
        whole = plan.parent / "entry"
        whole.mkdir()
        plan.rename(whole / PLAN)
        (whole / PLAN).with_suffix(".json").write_text(record.model_dump_json(indent=2) + "\n")
        shutil.rmtree(entry, ignore_errors=True)
        whole.rename(entry)
        return entry / PLAN

    def relative(self, family: str, key: str) -> tuple[Path, EngineRecord] | None:
        """An engine of `family` other than `key` into which weights can be put."""
        for path in sorted(self.root.glob("*/engine.json")):
            if path.parent.name == key:
                continue
            found = self.find(path.parent.name)
            if found is not None and found[1].family == family and found[1].refittable:
                return found
        return None


@dataclass(frozen=True)
class TimingCache:
    """Timings of kernels on one kind of GPU, kept between builds; a damaged file is removed and counts as none."""

    path: Path

    def read(self) -> bytes | None:
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, timings = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(timings).digest() == digest:
            return timings
        self.path.unlink(missing_ok=True)
        return None

    def write(self, timings: bytes) -> None:
        """Of builds that end at once the last one's timings stay."""
        partial = self.path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(hashlib.sha256(timings).digest() + timings)
        partial.replace(self.path)
