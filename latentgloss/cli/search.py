"""The commands `search` and `index rebuild`: find latents by what they respond to, in all SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from latentgloss.cli.output import (
    Number,
    json_option,
    open_workspace,
    print_json,
    print_json_rows,
    print_table,
    unknown,
)
from latentgloss.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

    from latentgloss.embeddings.search_index import Hit, SearchIndex
    from latentgloss.protocols import Embedder
    from latentgloss.workspace import Workspace


REBUILD = "`latentgloss index rebuild`"


@click.command()
@click.argument("text")
@click.option("--model", help="Only latents of this model.")
@click.option("--hookpoint", help="Only latents at this hookpoint, for example layers.9.mlp.")
@click.option("--sae", help="Only latents of this SAE: its name, or MODEL/HOOKPOINT/SAE.")
@click.option("--explainer", help="Only explanations by this explainer.")
@click.option("--min-score", type=Number(-1, 1), help="Only explanations with at least this score.")
@click.option("--scorer", default="detection", show_default=True, help="The scorer whose score --min-score bounds.")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Most hits to show.")
@click.option(
    "--mode",
    type=click.Choice(["vector", "text", "hybrid"]),
    default="vector",
    show_default=True,
    help="vector: by meaning. text: by words (BM25). hybrid: both rankings combined.",
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
    """Find latents by what they respond to, in all SAEs.

    Hits are shown best first. TEXT says in your own words what the latent responds to: `raising an error` also finds
    "words such as ValueError". With --mode text, the words of TEXT themselves are searched. Nothing in TEXT is an
    operator: quotes and AND are searched like other words. Null explanations are not in the index.

    SIMILARITY is the cosine between TEXT and the explanation. It ranks the hits and does not say how good an
    explanation is; the scores do. A score here is the lowest one over the scorer's judges and kinds of negatives, so an
    explanation must reach --min-score in all of them. If scores are of a profile other than the default, the column
    PROFILE names it.

    JSON: a list of objects with partition, latent, explainer, explanation, similarity (null in mode text), text_score
    (BM25; null in mode vector), density, scores and profile (of the scores).

    \b
    Example:
      latentgloss search "raising an error" --min-score 0.8
      latentgloss search "file path" --mode hybrid --hookpoint layers.9 --explainer pattern --json
    """
    from latentgloss.embeddings.search_index import SCORERS, checked_query
    from latentgloss.workspace.search import behind, open_index

    workspace = open_workspace(ctx)
    text = checked_query(text)
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    index, embedder = open_index(workspace)
    index.table()  # raises if there is no index, before a model is loaded
    vector = None if mode == "text" else _vector(embedder, embedder.spec.query_prefix, text)
    key = "partition" if sae and "/" in sae else "sae"
    given = {"model": model, "hookpoint": hookpoint, key: sae, "explainer": explainer}
    filters = {name: value for name, value in given.items() if value is not None}
    if min_score is not None:
        _check_scored(index, scorer)
    at_least = {} if min_score is None else {scorer: min_score}
    hits = index.search(text, vector, mode=mode, limit=limit, filters=filters, at_least=at_least)  # type: ignore[arg-type]
    if not hits:
        _check_filters(index, filters)
    if late := behind(workspace, index):
        _note(f"the index is not entirely built from the current search_index of {', '.join(late)}; run {REBUILD}")
    _print_hits(workspace, hits, as_json)


def _vector(embedder: Embedder, prefix: str, text: str) -> Float32[np.ndarray, " dimension"]:
    """The vector of a query. Prints a note if the query is longer than what the embedder reads."""
    (n,) = embedder.n_tokens([prefix + text])
    if n > embedder.max_tokens:
        _note(f"the query has {n} tokens; {embedder.name} reads the first {embedder.max_tokens} and ignores the rest")
    vector: Float32[np.ndarray, " dimension"] = embedder.queries([text])[0]
    return vector


def _check_scored(index: SearchIndex, scorer: str) -> None:
    """Raises InputError if no explanation in the index has a score of `scorer`; prints a note if some have none."""
    missing, rows = index.unscored(scorer)
    if missing == rows:
        raise InputError(
            f"no explanation in the index has a score of {scorer}",
            expected=f"results of the stage {scorer}_scores in search_index",
            todo=f"materialise {scorer}_scores and then search_index, or name another --scorer",
        )
    if missing:
        _note(f"{missing:,} of {rows:,} explanations have no score of {scorer} and are left out")


def _check_filters(index: SearchIndex, filters: dict[str, str]) -> None:
    """Raises InputError if a filter has a value that does not occur in the index."""
    for name, value in filters.items():
        known = index.known(name)
        if value not in known:
            raise unknown("SAE" if name == "partition" else name, value, known, "it may not have been indexed yet")


def _print_hits(workspace: Workspace, hits: list[Hit], as_json: bool) -> None:
    """Prints hits as JSON or as a table, with the profile of their scores."""
    from latentgloss.embeddings.search_index import SCORERS
    from latentgloss.schema import DEFAULT_PROFILE

    profiles = _profiles(workspace, {hit.partition for hit in hits})
    if as_json:
        print_json_rows({**hit.as_json(), "profile": profiles.get(hit.partition, DEFAULT_PROFILE)} for hit in hits)
        return
    if not hits:
        click.echo("no latent matches")
        return
    scorers = [name for name in SCORERS if any(name in hit.scores for hit in hits)]
    profile = ["PROFILE"] if profiles else []
    columns = ("PARTITION", "LATENT", "EXPLAINER", "SIMILARITY", *map(str.upper, scorers), *profile, "EXPLANATION")
    print_table(
        columns,
        (
            [
                hit.partition,
                hit.latent,
                hit.explainer,
                hit.similarity,
                *(hit.scores.get(scorer) for scorer in scorers),
                *(profiles.get(hit.partition, DEFAULT_PROFILE) for _ in profile),
                hit.explanation,
            ]
            for hit in hits
        ),
    )


def _profiles(workspace: Workspace, partitions: set[str]) -> dict[str, str]:
    """The profile of the scores in the index, for those of the SAEs where it is not the default profile."""
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
    """Prints a note to stderr."""
    click.echo(f"Note: {text}.", err=True)


@click.group()
def index() -> None:
    """Maintain the search index and the tables of vectors.

    \b
    Example:
      latentgloss index rebuild
    """


@index.command()
@json_option
@click.pass_context
def rebuild(ctx: click.Context, as_json: bool) -> None:
    """Build the search index again.

    It is made from the current explanations and scores. Use it when a message says that the index or a table of vectors
    cannot be read, was made with another embedder or dimension, or is not current. Unusable tables of vectors are
    removed. Nothing is lost, because the index and the vectors are derived: existing vectors are reused and missing
    ones computed. The present index is replaced only when the new one is complete.

    JSON: rows (explanations per SAE) and removed (names of tables).

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
        click.echo(f"removed {name} ({why}); its vectors are computed again when they are needed")
