"""`parure serve`: the embedded Triton, on loopback."""

from __future__ import annotations

from pathlib import Path

import click

from parure.cli.common import needs


@click.command("serve")
@click.argument("repository", type=click.Path(path_type=Path), metavar="MODEL_REPOSITORY")
@click.option("--http-port", default=8000, show_default=True)
@click.option("--grpc-port", default=8001, show_default=True)
@click.option("--metrics-port", default=8002, show_default=True)
@click.option("--client-shared-memory", is_flag=True, help="Let clients share memory; for trusted ones on this host.")
@click.option("--admin-key", envvar="PARURE_ADMIN_KEY", help="Opens what is closed to clients, such as statistics.")
def command(
    repository: Path, http_port: int, grpc_port: int, metrics_port: int, client_shared_memory: bool,
    admin_key: str | None,
) -> None:  # fmt: skip
    """Serve MODEL_REPOSITORY with the Triton server of the nvidia-pytriton wheel until Ctrl-C or SIGTERM."""
    with needs("serving", "cpu,serve"):
        from parure_triton.server import Addresses, serve

    def on_ready(addresses: Addresses) -> None:
        click.echo(f"ready\n  {addresses.grpc}\n  {addresses.http}\n  metrics {addresses.metrics}\nCtrl-C stops it")

    click.echo("starting Triton ...", err=True)
    serve(
        repository,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        on_ready=on_ready,
        client_shared_memory=client_shared_memory,
        admin_key=admin_key,
    )
    click.echo("stopped", err=True)
