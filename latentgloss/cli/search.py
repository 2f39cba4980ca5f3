"""`search` and `index`: which latents respond to something, over all SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from latentgloss.cli.output import json_option, open_workspace, print_json, print_json_rows, print_table, unknown
from latentgloss.errors import InputError

if TYPE_CHECKING:
    from latentgloss.embeddings.search_index import SearchIndex
    from latentgloss.workspace import Workspace


REBUILD = "`latentgloss index rebuild`"


@click.command()
@click.argument("text")
@click.option("--model", help="Only latents of this model.")
@click.option("--hookpoint", help="Only at this hookpoint, such as layers.9.mlp.")
@click.option("--sae", help="Only of this SAE: its name, or MODEL/HOOKPOINT/SAE.")
@click.option("--explainer", help="Only explanations by this explainer.")
@click.option("--min-score", type=click.FloatRange(-1, 1), help="Lowest score that will do; see --scorer.")
@click.option("--scorer", default="detection", show_default=True, help="Whose score --min-score is about.")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Most hits.")
@click.option(
    "--mode",
    type=click.Choice(["vector", "text", "hybrid"]),
    default="vector",
    show_default=True,
    help="By meaning, by words (BM25), or both fused by rank.",
)
@json_option
@click.pass_context
def search(
    ctx: click.Context,
    text: str,
    model: str | None,
    hookpoint: str | None,
    sae: str | None,
    explainer: str | None,
    min_score: float | None,
    scorer: str,
    limit: int,
    mode: str,
    as_json: bool,
) -> None:
    """Latents whose explanation is about TEXT, in every SAE that was indexed, best first.

    Say what the latent responds to, in words of your own: `raising an error` also finds "words such as ValueError".
    With --mode text the words themselves must be there; nothing in TEXT is an operator, quotes and AND included. Null
    explanations are not indexed.

    SIMILARITY is the cosine of two vectors: it ranks, and says nothing about how good an explanation is. For that there
    are scores: of each scorer the lowest over its judges and kinds of negatives, so that --min-score .8 keeps
    what holds up against all of them. Those of another profile than the default name it.

    JSON: a list of objects with partition, latent, explainer, explanation, similarity (null in mode text), text_score
    (BM25; null in mode vector), density, scores and profile (of the scores).

    \b
    Example:
      latentgloss search "raising an error" --min-score 0.8
      latentgloss search "file path" --mode hybrid --hookpoint layers.9 --explainer pattern --json
    """
    from latentgloss.embeddings.search_index import SCORERS, checked_query
    from latentgloss.schema import DEFAULT_PROFILE
    from latentgloss.workspace.search import behind, open_index

    workspace = open_workspace(ctx)
    text = checked_query(text)
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    index, embedder = open_index(workspace)
    index.table()  # before a model is loaded
    vector = None
    if mode != "text":
        (n,) = embedder.n_tokens([embedder.spec.query_prefix + text])
        if n > embedder.max_tokens:
            _note(
                f"the query has {n} tokens; {embedder.name} reads the first {embedder.max_tokens}, the rest is left out"
            )
        (vector,) = embedder.queries([text])
    whole = "partition" if sae and "/" in sae else "sae"
    given = {"model": model, "hookpoint": hookpoint, whole: sae, "explainer": explainer}
    filters = {name: value for name, value in given.items() if value is not None}
    at_least = {} if min_score is None else {scorer: min_score}
    for name in at_least:
        missing, rows = index.unscored(name)
        if missing == rows:
            raise InputError(
                f"no explanation in the index has a score of {name}",
                expected=f"the assets {name}_scores and then search_index",
                todo="materialise them, or name another --scorer",
            )
        if missing:
            _note(f"{missing:,} of {rows:,} explanations have no score of {name} and are left out")
    hits = index.search(text, vector, mode=mode, limit=limit, filters=filters, at_least=at_least)  # type: ignore[arg-type]
    if not hits:
        _explain_nothing(index, filters)
    late = behind(workspace, index)
    if late:
        _note(
            f"the index is not, or not wholly, of the current search_index of {', '.join(late)}: {REBUILD} mends that"
        )
    labels = _profiles(workspace, {hit.partition for hit in hits})
    if as_json:
        print_json_rows({**hit.as_json(), "profile": labels.get(hit.partition, DEFAULT_PROFILE)} for hit in hits)
        return
    if not hits:
        click.echo("no latent matches")
        return
    scorers = [name for name in SCORERS if any(name in hit.scores for hit in hits)]
    profile = ["PROFILE"] if labels else []
    named = (name.upper() for name in scorers)
    columns = ("PARTITION", "LATENT", "EXPLAINER", "SIMILARITY", *named, *profile, "EXPLANATION")
    print_table(
        columns,
        (
            [
                h.partition,
                h.latent,
                h.explainer,
                h.similarity,
                *(h.scores.get(s) for s in scorers),
                *(labels.get(h.partition, DEFAULT_PROFILE) for _ in profile),
                h.explanation,
            ]
            for h in hits
        ),
    )


def _explain_nothing(index: SearchIndex, filters: dict[str, str]) -> None:
    """Raises InputError if a filter names something the index does not know."""
    for name, value in filters.items():
        known = index.known(name)
        if value not in known:
            raise unknown("SAE" if name == "partition" else name, value, known, "it may not have been indexed yet")


def _profiles(workspace: Workspace, partitions: set[str]) -> dict[str, str]:
    """Of these SAEs, those whose scores in the index are of another profile than the default, and of which."""
    from latentgloss.config.entries import split_partition
    from latentgloss.pipeline.graph import STAGES, profile_of
    from latentgloss.schema import DEFAULT_PROFILE

    found = {}
    for model in {split_partition(partition)[0] for partition in partitions}:
        version = workspace.store.current("search_index", model)
        for pin in version.manifest.inputs if version is not None else []:
            if STAGES[pin["stage"]].noun == "scores" and pin["partition"] in partitions:
                scored = workspace.store.version(pin["stage"], pin["partition"], pin["fingerprint"])
                if scored is not None and profile_of(scored) != DEFAULT_PROFILE:
                    found[pin["partition"]] = profile_of(scored)
    return found


def _note(text: str) -> None:
    click.echo(f"Note: {text}.", err=True)


@click.group()
def index() -> None:
    """The search index and the tables of vectors beside it."""


@index.command()
@json_option
@click.pass_context
def rebuild(ctx: click.Context, as_json: bool) -> None:
    """Makes the search index anew from the current explanations and scores, and removes unusable tables of vectors.

    Nothing is lost by it: the index is derived, and vectors are made again when they are needed (those that are there
    are not computed again). Until the new index is whole the present one stays. Run it when a command says that a table
    cannot be read, was made with another embedder or dimension, or is behind. JSON: rows (per SAE) and removed (names
    of tables).

    \b
    Example:
      latentgloss index rebuild
    """
    from latentgloss.workspace import search as core

    rows, removed = core.rebuild(open_workspace(ctx))
    if as_json:
        print_json({"rows": rows, "removed": list(removed)})
        return
    print_table(("PARTITION", "EXPLANATIONS"), list(rows.items()))
    for name, why in removed.items():
        click.echo(f"removed {name} ({why}); its vectors are made again when needed")
