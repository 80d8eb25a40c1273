"""Parquet, by pyarrow (extra `batch`): rows in, rows out, never more than a part of a table in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from parure.batch.files import open_binary
from parure.errors import InputError

_BATCH = 1024  # rows that are in memory at once


def pyarrow() -> Any:
    """The module, with its Parquet part. Raises `InputError` where it cannot be used."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InputError(
            f"batch jobs need {error.name}, which is not installed; run `pip install 'parure[batch]'`"
        ) from error
    except ImportError as error:  # 26 and newer refuse the numpy that Triton's python backend needs
        raise InputError(f"pyarrow cannot be used ({error}); run `pip install 'parure[batch]'`") from error
    return pyarrow


def count_rows(source: str) -> int:
    with open_binary(source, "job file") as stream:
        return int(_opened(source, stream).metadata.num_rows)


def parquet_rows(source: str, required: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
    """Each row by column, or why it cannot be read; a group of rows that is damaged costs its own rows only."""
    arrow = pyarrow()
    with open_binary(source, "job file") as stream:
        file = _opened(source, stream)
        if missing := [name for name in required if name not in file.schema_arrow.names]:
            raise InputError(
                f"job file {source!r} has no column {', '.join(missing)}; expected {', '.join(required)}, and it has "
                f"{', '.join(file.schema_arrow.names)}"
            )
        for group in range(file.num_row_groups):
            left = file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(_BATCH, row_groups=[group], use_threads=False):
                    left -= len(batch)
                    yield from batch.to_pylist()
            except (arrow.ArrowException, OSError, ValueError) as error:
                for _ in range(left):
                    yield f"row group {group} of the job file cannot be read ({' '.join(str(error).split())[:200]})"


class TableWriter:
    """Writes rows to a Parquet file as they come. A context manager: leaving it completes the file."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        """`columns`: names, and pyarrow's names of their types."""
        arrow = pyarrow()
        types = {"string": arrow.string(), "int64": arrow.int64(), "float64": arrow.float64(), "bool": arrow.bool_()}
        self._schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._table = arrow.Table
        self._file = arrow.parquet.ParquetWriter(str(path), self._schema)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """A group of rows of its own: pyarrow keeps what is written in batches until there are a million.

        Always from one thread, since pyarrow keeps memory for every thread that ever used it.
        """
        self._file.write_table(self._table.from_pylist(list(rows), schema=self._schema))

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _opened(source: str, stream: Any) -> Any:
    arrow = pyarrow()
    try:
        return arrow.parquet.ParquetFile(stream)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"job file {source!r} is no Parquet file ({' '.join(str(error).split())[:200]}); write it again"
        ) from error
