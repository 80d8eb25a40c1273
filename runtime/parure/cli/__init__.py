"""`parure`: one command, whose subcommands are imported only when they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from parure.errors import ParureError

COMMANDS = {
    "checkpoint": ("parure.cli.checkpoint", "Make and inspect checkpoint folders."),
    "export": ("parure.cli.export", "Checkpoint -> bundle: ONNX, solvers, proof of parity."),
    "build": ("parure.cli.build", "Bundle -> TensorRT engines, also without a GPU."),
    "inspect": ("parure.cli.inspect", "Everything in a bundle, on one page."),
    "verify": ("parure.cli.verify", "Is a bundle whole, and does it compute what it did?"),
    "preflight": ("parure.cli.preflight", "Will a bundle run on this machine, or on that server?"),
    "repo": ("parure.cli.repo", "Bundle -> Triton model repository."),
    "serve": ("parure.cli.serve", "Serve a model repository with the embedded Triton."),
    "health": ("parure.cli.health", "Does every model of a server really answer?"),
    "doctor": ("parure.cli.doctor", "What is wrong with this machine, or with that server?"),
    "run": ("parure.cli.run", "Put an ornament onto a photo."),
    "batch": ("parure.cli.batch", "A table of pictures to make, on any number of servers."),
    "evaluate": ("parure.cli.evaluate", "Measure a bundle on held-out triplets."),
    "bench": ("parure.cli.bench", "How fast, against whom, and how near the limit."),
    "plan": ("parure.cli.plan", "How many GPUs for a rate and a p99, and with which settings."),
    "demo": ("parure.cli.demo", "The whole way, end to end, on real input."),
}


class LazyGroup(click.Group):
    """Knows its subcommands by name; a subcommand's module is imported when it is called or asked for help."""

    def __init__(self, modules: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        """`modules`: by subcommand, the module whose `command` it is, and what it does in one line."""
        super().__init__(**attributes)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.modules:
            return None
        command: click.Command = importlib.import_module(self.modules[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.modules.items()])


@click.group(cls=LazyGroup, modules=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="parure", prog_name="parure")
def cli() -> None:
    """Takes a trained diffusion try-on model to production."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exit code 2 for wrong input, 1 for failure, 130 for Ctrl-C; never a traceback for either."""
    try:
        result: Any = cli.main(args=arguments, standalone_mode=False)
    except ParureError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("cancelled", 130)
    except BrokenPipeError:
        sys.exit(141)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    sys.exit(code)
