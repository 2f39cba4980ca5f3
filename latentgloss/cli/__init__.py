"""The command `latentgloss …`: shows what is in a workspace, checks it and cleans it up.

What belongs here: the commands, one module per group, and how errors are reported. An error is one message on stderr
with exit code 1 if the request failed, or 2 if the command was used wrongly. What a command *finds out* is in the core
module that it calls. Stages are run by Dagster, never from here. Heavy imports are inside the commands, so that
`--help` is instant and only commands that read weights load torch.

- `show`         `status`, `explanations`, `scores`
- `card`         `show`
- `report`       `report`
- `search`       `search`, `index rebuild`
- `saes`         `saes list`, `saes check`
- `estimate`     `estimate`, `spent`
- `replies`      `replies forget`
- `try_latent`   `try`
- `lineage`      `lineage`
- `maintenance`  `gc`, `doctor`
- `output`       what commands share: the workspace, tables, JSON

The commands use click, because it is small and stable, is already a dependency of Dagster and transformers, and has a
test runner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latentgloss import __version__
from latentgloss.cli import card, estimate, lineage, maintenance, replies, report, saes, search, show, try_latent
from latentgloss.errors import LatentglossError
from latentgloss.machine.printable import printable

__all__ = ["cli", "main"]


class _Commands(click.Group):
    """Turns errors of latentgloss and of files into messages. Any other error is a defect and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises ClickException for an error that is reported as a message."""
        try:
            return super().invoke(ctx)
        except LatentglossError as e:
            raise click.ClickException(str(e)) from e
        except click.ClickException as e:
            if type(e) is not click.ClickException:
                raise  # wrong usage
            raise click.ClickException(printable(e.message, lines=True)) from e  # it may quote files and servers
        except BrokenPipeError:
            raise  # not an error, as in `… | head`: click ends quietly
        except OSError as e:
            where = printable(e.filename or "input or output")
            raise click.ClickException(f"{where}: {printable(e.strerror or e)}.") from e


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings file. Default: the environment variable LATENTGLOSS_CONFIG, or else the first latentgloss.toml in "
    "this folder or the folders above it.",
)
@click.version_option(__version__, prog_name="latentgloss")
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Explain the latents of sparse autoencoders, score every explanation, and show where each number comes from.

    These commands show what is in the store, check it and clean it up. The results themselves are computed by
    Dagster, for example with `dagster asset materialize`.

    An SAE is named MODEL/HOOKPOINT/SAE, for example smollm2/layers.9/topk2048; `latentgloss saes list` lists them.
    Every command has an example under --help, and --json for use in programs.

    \b
    Example:
      latentgloss status
    """
    ctx.obj = config


for command in (
    show.status,
    card.show,
    show.explanations,
    show.scores,
    report.report,
    estimate.estimate,
    estimate.spent,
    lineage.lineage,
    replies.replies,
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
