"""`parure doctor`: what is wrong with this machine, or with that endpoint?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.console import Console

from parure.cli.common import LEVELS, findings_table
from parure.doctor.endpoint import examine_endpoint
from parure.doctor.machine import PORTS, examine_machine


@click.command("doctor")
@click.argument("url", required=False, metavar="[URL]")
@click.option("--deadline", default=10.0, show_default=True, help="Seconds for one call to the server.")
@click.option(
    "--metrics-port", default=PORTS["metrics"], show_default=True, help="Where the server at URL tells its metrics."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(url: str | None, deadline: float, metrics_port: int, as_json: bool) -> None:
    """Examine this machine, or the server at URL. Exit code 1 if there is a problem; a warning is none."""
    findings = list(examine_machine() if url is None else examine_endpoint(url, deadline, metrics_port))
    if as_json:
        click.echo(json.dumps([asdict(finding) | {"level": finding.level} for finding in findings], indent=2))
    else:
        Console().print(findings_table(findings, marks=LEVELS))
    sys.exit(1 if any(finding.level == "problem" for finding in findings) else 0)
