"""Reading files by path or URL; URLs through fsspec (extra `batch`)."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from parure.errors import ImageError, InputError, StorageError
from parure.image import MAX_BYTES


def is_remote(path: str) -> bool:
    return "://" in path


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for `url`, and the path there. Raises `InputError` where its package is not installed."""
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"{url} needs fsspec, which is not installed; run `pip install 'parure[batch]'`") from error
    try:
        found, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} cannot be used ({error}); install what its protocol needs") from error
    return found, str(path)


@contextmanager
def open_binary(path: str, subject: str) -> Iterator[IO[bytes]]:
    """An open file; of one that ends in .gz what is packed in it. Raises `InputError` where it cannot be opened."""
    try:
        stream = _opened(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{subject} {path!r} cannot be opened ({_why(error)}); check the path") from error
    with stream:
        yield stream


def _opened(path: str) -> IO[bytes]:
    if is_remote(path):
        found, there = filesystem(path)
        return BufferedReader(found.open(there, "rb", compression="infer"))  # those of fsspec know fewer ways to read
    return cast(IO[bytes], gzip.open(path, "rb")) if path.endswith(".gz") else Path(path).open("rb")


def read_picture(path: str, subject: str) -> bytes:
    """The bytes of a picture file. Raises `ImageError` for what is no such file, `StorageError` where reading fails."""
    try:
        size = _size(path, subject)
        if size > MAX_BYTES:
            raise ImageError(
                f"{subject} {path!r} has {size:,} bytes; expected at most {MAX_BYTES:,}; make it smaller or compress it"
            )
        if not is_remote(path):
            return Path(path).read_bytes()
        found, there = filesystem(path)
        return bytes(found.cat_file(there))
    except FileNotFoundError as error:
        raise ImageError(f"{subject} {path!r} does not exist; check the path") from error
    except PermissionError as error:
        raise ImageError(f"{subject} {path!r} may not be read; change its permissions") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"{subject} {path!r} cannot be read ({_why(error)}); try again") from error


def _size(path: str, subject: str) -> int:
    if is_remote(path):
        found, there = filesystem(path)
        return int(found.info(there).get("size") or 0)
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
        raise ImageError(f"{subject} {path!r} is not a regular file; name a picture file")
    return status.st_size


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
