"""`parure repo`: bundle -> model repository, and what deploys it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parure.bundle import Bundle
from parure.cli.common import needs
from parure.errors import InputError

if TYPE_CHECKING:
    from parure_triton.model import ModelFolder

BACKENDS = click.Choice(["python", "onnxruntime", "tensorrt"])


@click.command("repo")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="MODEL_REPOSITORY", help="Where to write it.")
@click.option("--print", "printed", is_flag=True, help="Show the configurations and write nothing.")
@click.option("--backend", type=BACKENDS, default="python", show_default=True, help="What runs the components.")
@click.option("--target", "targets", multiple=True, help="Serve the engines of this target; repeatable (tensorrt).")
@click.option("--provider", type=click.Choice(["cuda", "tensorrt"]), default="cuda", show_default=True,
              help="Execution provider (onnxruntime).")  # fmt: skip
@click.option("--instances", default=1, show_default=True, help="Instances of every component, on each GPU.")
@click.option("--gpus", metavar="0,1", help="GPUs, as the server numbers them [default: all; python: the CPU].")
@click.option("--threads", type=int, help="CPU threads of one instance [default: all cores].")
@click.option("--max-batch", type=int, help="Largest batch [default: the bundle's, or the engine's].")
@click.option("--preferred", metavar="4,8", help="Batch sizes that go at once; '' for none [default: derived].")
@click.option("--queue-delay", type=int,
              help="Microseconds that a batch waits for more requests [default: on a CPU 1000, on GPUs 0].")  # fmt: skip
@click.option("--max-queue", type=int, help="Requests that may wait for one component [default: as many as come].")
@click.option("--queue-timeout", type=float, help="Seconds that a request may wait [default: as long as it takes].")
@click.option("--rate-limit", type=int, help="Executions at a time on one GPU, over all components.")
@click.option("--warmup/--no-warmup", default=True, show_default=True, help="Run real shapes before a model is ready.")
@click.option("--cuda-graphs/--no-cuda-graphs", default=True, show_default=True, help="Capture CUDA graphs (tensorrt).")
@click.option("--at-work", default=16, show_default=True, help="Pictures that the server loop works on at once.")
@click.option("--waiting", default=64, show_default=True, help="Pictures that wait for it; the next is refused.")
@click.option("--ornament-cache", default=1024, show_default=True, help="MiB of ornaments that the server loop keeps.")
@click.option("--features-memory", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True,
              help="Where features stay between the calls of the server loop.")  # fmt: skip
@click.option("--deploy", type=click.Path(path_type=Path), metavar="DIR",
              help="Write image, compose file and Helm chart there.")  # fmt: skip
@click.option("--container", help="Tag of NVIDIA's Triton container, 26.06 or newer [default: 26.06-py3].")
@click.option("--drain", type=int, help="Seconds that calls in flight have after SIGTERM [default: 30].")
@click.option("--allow-client-shm", "client_shm", is_flag=True,
              help="Deployed: trusted clients on the same host may register shared memory.")  # fmt: skip
def command(
    bundle: Path, out: Path | None, printed: bool, gpus: str | None, preferred: str | None, deploy: Path | None,
    container: str | None, drain: int | None, client_shm: bool, **settings: Any,
) -> None:  # fmt: skip
    """Write a Triton model repository for BUNDLE: one model per component, the server loop, and the manifest.

    With --deploy, also what serves it with NVIDIA's container. docs/deploy.md says what every option does.
    """
    with needs("writing a repository", "cpu,serve"):
        from parure_triton.components import repository_models
        from parure_triton.deployment import Deployment, DeploymentOptions, check_places, write_deployment
        from parure_triton.options import RepositoryOptions
        from parure_triton.repository import write_repository
    options = RepositoryOptions.of(
        **settings,
        gpus=() if gpus is None else _numbers(gpus, "--gpus", 0),
        preferred=None if preferred is None else _numbers(preferred, "--preferred", 1),
    )
    if printed:
        _print(repository_models(Bundle.open(bundle), options))
        return
    if out is None:
        raise InputError("nothing says where the repository goes; name a folder with --out, or look at it with --print")
    given = {"container": container, "drain": drain, "client_shm": client_shm or None}
    deployment = DeploymentOptions.of(**{name: value for name, value in given.items() if value is not None})
    if deploy is not None:
        check_places(deploy, out, options)
    elif deployment != DeploymentOptions():
        raise InputError(
            "--container, --drain and --allow-client-shm are of a deployment; name its folder with --deploy"
        )
    models = write_repository(bundle, out, options=options)
    click.echo(f"model repository: {out}")
    for folder in models:
        click.echo(f"  {_summary(folder)}")
    if deploy is not None:
        write_deployment(Deployment(Bundle.open(bundle).manifest, models, options, deployment), deploy, out)
        click.echo(f"deployment: {deploy}")
    if options.placement_gpus is None:
        click.echo(f"serve it: parure serve {out}")


def _print(models: Sequence[ModelFolder]) -> None:
    from parure_triton.config import render_config

    for folder in models:
        click.echo(f"==> {folder.model.name}/config.pbtxt <==\n{render_config(folder.model)}")


def _summary(folder: ModelFolder) -> str:
    model = folder.model
    files = ", ".join(name for name in folder.files if "/" not in name and name != "model.py")
    batches = f"batches 1 to {model.max_batch}" if model.max_batch else "no batches"
    return f"{model.name}: {', '.join(filter(None, [files, model.backend.value, batches]))}"


def _numbers(text: str, option: str, least: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (least - 1,)
    if any(number < least for number in numbers):
        raise InputError(f"{option} is {text!r}; expected whole numbers from {least} on, separated by commas")
    return numbers
