"""`parure health`: does a server really answer?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.console import Console

from parure.cli.common import findings_table
from parure.health import probe


@click.command("health")
@click.argument("url")
@click.option("--deadline", default=10.0, show_default=True, help="Seconds for one call to the server.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(url: str, deadline: float, as_json: bool) -> None:
    """Make one small real call to every model of the server at URL. Exit code 1 if any does not answer."""
    findings = list(probe(url, deadline))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        Console().print(findings_table(findings))
    sys.exit(1 if any(finding.passed is False for finding in findings) else 0)
