"""`parure bench report`: records as a page."""

from __future__ import annotations

from pathlib import Path

import click

from parure.cli.common import make_folder, needs


@click.command("report")
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for report.html and the PNGs.")
@click.option("--png/--no-png", default=True, show_default=True, help="Also every chart as a picture; needs Chrome.")
def command(records: tuple[Path, ...], out: Path, png: bool) -> None:
    """Draw RECORDS of `parure bench` as one page that works offline, and as PNGs of the same charts."""
    with needs("a report", "bench"):
        from parure_bench.record import load_record
        from parure_bench.report.page import sections, write_page, write_pictures
    loaded = [load_record(path) for path in records]
    found = sections(loaded)
    make_folder(out)
    click.echo(write_page(loaded, found, out))
    if png:
        written, failure = write_pictures(found, out)
        for path in written:
            click.echo(path)
        if failure is not None:
            click.echo(
                f"no more pictures: {failure}; they need Chrome or Chromium: install one (Debian: apt-get install chromium; "
                "elsewhere: plotly_get_chrome), or leave them out with --no-png",
                err=True,
            )
