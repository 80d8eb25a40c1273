"""`parure verify`: is a bundle whole, and does it still compute what it did?"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from parure.bundle import Bundle
from parure.cli.common import findings_table, needs


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--bisect",
    "other",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Name the first tensor at which BUNDLE differs.",
)
@click.option("--threshold", default=1e-2, show_default=True, help="Relative error that --bisect calls a difference.")
def command(bundle: Path, other: Path | None, threshold: float) -> None:
    """Check BUNDLE: hashes, schema, graphs, engine plans, parity on its own tensors. Exit code 1 on any difference.

    With --bisect, compare it with another bundle of the same model instead, tensor by tensor.
    """
    with needs("verifying", "cpu,export"):
        from parure_export.bisect import Parting, first_difference
        from parure_export.verify import verify
    console = Console()
    failed = False
    if other is not None:
        table = Table("component", "first tensor that differs", "made by", "error", "tensors before it")
        with console.status("comparing"):
            for found in first_difference(Bundle.open(bundle), Bundle.open(other), threshold):
                if isinstance(found, Parting):
                    failed = True
                    table.add_row(
                        found.component, found.tensor, found.op, f"{found.error:.1e}", str(found.compared - 1)
                    )
                else:
                    table.add_row(found, "none", "", "", "")
    else:
        with console.status("verifying"):
            findings = list(verify(bundle))
        failed = any(finding.passed is False for finding in findings)
        table = findings_table(findings)
    console.print(table)
    sys.exit(1 if failed else 0)
