"""`latentgloss …`: looks at a workspace and tends it. Stages are run by Dagster, never from here.

What belongs here: the commands, one module per group (`show`, `forecast`, `trace`, `tryout`, `search`, `saes`,
`upkeep`), and how errors leave: one message on stderr and exit code 1 for what was asked for and failed, 2 for wrong
usage. What a command *finds out* is in the core module it calls; heavy imports are inside the commands, so that
`--help` is instant and only commands that read weights load torch.

click: small, stable, already among the dependencies of Dagster and transformers, with a test runner of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latentgloss import __version__
from latentgloss.cli import estimate, lineage, maintenance, saes, search, show, try_latent
from latentgloss.errors import LatentglossError

__all__ = ["cli", "main"]


class _Commands(click.Group):
    """Turns errors that say what to do into a message; what is left is a defect and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LatentglossError as e:
            raise click.ClickException(str(e)) from e
        except BrokenPipeError:
            raise  # `… | head` is no error: click ends quietly
        except OSError as e:
            raise click.ClickException(f"{e.filename or 'input or output'}: {e.strerror or e}.") from e


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings file. Default: LATENTGLOSS_CONFIG, else the nearest latentgloss.toml upward from here.",
)
@click.version_option(__version__, prog_name="latentgloss")
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Explanations of the latents of sparse autoencoders, and where each of them comes from.

    A SAE is named MODEL/HOOKPOINT/SAE, as `latentgloss saes list` prints it. Stages are run by Dagster; these
    commands look at what is there, check it, and clear up.

    \b
    Example:
      latentgloss status
    """
    ctx.obj = config


for command in (
    show.status,
    show.explanations,
    show.scores,
    estimate.estimate,
    estimate.spent,
    lineage.lineage,
    try_latent.try_,
    search.search,
    search.index,
    saes.saes,
    maintenance.gc,
    maintenance.doctor,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the command `latentgloss`."""
    cli(prog_name="latentgloss")
