"""`parure preflight`: will a bundle run on this machine, or on that server?"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from parure.bundle import Bundle
from parure.cli.common import findings_table
from parure.preflight import examine_host, examine_server


@click.command("preflight")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("url", required=False, metavar="[URL]")
@click.option("--deadline", default=10.0, show_default=True, help="Seconds for one call to the server.")
def command(bundle: Path, url: str | None, deadline: float) -> None:
    """Compare BUNDLE with this machine (GPU, runtimes, engines), or with the server at URL. Exit code 1 if it won't run."""
    opened = Bundle.open(bundle)
    findings = list(examine_host(opened) if url is None else examine_server(opened, url, deadline))
    Console().print(findings_table(findings))
    sys.exit(1 if any(f.passed is False for f in findings) else 0)
