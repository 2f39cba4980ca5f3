"""A card: what the store knows about one latent, as one object for screens and pages.

What belongs here: reading the tables of one SAE that mention the latent, and choosing what people look at first: the
explanation, one score per scorer and judge, contexts over the deciles, promoted tokens, neighbours and the hardest
mistakes. Nothing is computed anew and nothing is written. Reads every table of the SAE, one block of 256 latents each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.contexts.marks import dense_activations
from latentgloss.errors import InputError, MissingInput
from latentgloss.explanations.explainers import BASELINE, NULL, base_of, block_name
from latentgloss.explanations.labels import shortened
from latentgloss.models.tokenizer import token_texts
from latentgloss.pipeline.graph import STAGES
from latentgloss.report.headline import of_first_arm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from latentgloss.store import Version
    from latentgloss.workspace.workspace import Workspace


CONTEXTS, NEIGHBOURS, MISTAKES = 8, 5, 2
"""How many of each a card shows unless it is asked for others."""


@dataclass(frozen=True)
class Window:
    """One context: the text of each token, and the latent's activation on it."""

    context: int
    split: str
    decile: int
    """10 is the strongest; 0 for a context in which the latent is silent."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """0 on every token if the latent is silent. Of sampled activating contexts only, others are not looked up."""


@dataclass(frozen=True)
class Score:
    """One score of the explanation, beside the mean score of other latents' explanations."""

    scorer: str
    judge: str
    negatives: str
    metric: str
    n: int
    score: float | None
    low: float | None
    """Ends of the 95 % interval over documents."""
    high: float | None
    null: float | None
    status: str
    reason: str


@dataclass(frozen=True)
class Mistake:
    """A test context that a judge took for the other kind, with the strongest evidence for that."""

    scorer: str
    judge: str
    truth: bool
    """Whether the latent fires there."""
    evidence: float | None
    window: Window


@dataclass(frozen=True)
class Neighbour:
    """Another latent of the SAE with a similar decoder direction."""

    latent: int
    cosine: float
    says: str
    """The label of its explanation; empty if it has none."""


@dataclass(frozen=True)
class Card:
    """One latent."""

    partition: str
    latent: int
    explainer: str
    says: str
    """The explanation; empty if there is none."""
    label: str
    """The explanation in at most 120 characters."""
    coverage: float | None
    """Share of the latent's activation mass that falls on what the label names; None if it was not measured."""
    kind: str | None
    status: str
    reason: str
    density: float | None
    """Share of tokens on which it fires."""
    max_activation: float | None
    scores: tuple[Score, ...] = ()
    windows: tuple[Window, ...] = ()
    """Strongest first, from the explain split."""
    promotes: tuple[str, ...] = ()
    """Output tokens that its direction makes more likely (logit lens), most promoted first."""
    neighbours: tuple[Neighbour, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    missing: tuple[str, ...] = field(default=())
    """Stages without a result for this SAE."""


def card_of(
    workspace: Workspace,
    partition: str,
    latent: int,
    *,
    explainer: str | None = None,
    contexts: int = CONTEXTS,
    mistakes: int = MISTAKES,
) -> Card:
    """The card of one latent. `explainer`: whose explanation it shows; None: the first of the settings that has one.

    Raises MissingInput if the SAE has no explanations, InputError if the latent is not selected or the explainer is
    unknown, StoreError if a table is damaged.
    """
    explained = workspace.store.current("explanations", partition)
    if explained is None:
        raise MissingInput(
            f"explanations of {partition} have not been materialised",
            todo=f"materialise them: `dagster asset materialize --select explanations --partition {partition}`",
        )
    rows = _rows(explained, schema.EXPLANATIONS, latent)
    row = _explanation(rows, explainer, workspace.settings.explanations.explainers, partition, latent)
    reading = _Reading(workspace, partition)
    latents = reading.rows("activation_cache", schema.LATENTS, latent)
    about: dict[str, Any] = latents.row(0, named=True) if latents.height else {}
    scores, found = _scores(reading, latent, row["explainer"], mistakes)
    neighbours = list(zip(about.get("neighbours", ()), about.get("neighbour_cosines", ()), strict=False))[:NEIGHBOURS]
    says = _sayings(explained, [n for n, _ in neighbours], row["explainer"])
    return Card(
        partition,
        latent,
        row["explainer"],
        row["explanation"],
        row.get("label") or shortened(row["explanation"]),  # versions before labels have none
        row.get("coverage"),
        row.get("kind"),
        row["status"],
        row["reason"],
        about.get("density"),
        about.get("max"),
        scores,
        reading.windows(_over_deciles(reading.rows("sampled_contexts", schema.CONTEXTS, latent), contexts)),
        tuple(reading.texts(about.get("top_outputs", ()))),
        tuple(Neighbour(n, cosine, says.get(n, "")) for n, cosine in neighbours),
        found,
        tuple(reading.missing),
    )


class _Reading:
    """The current versions of one SAE, its corpus and its tokens. Remembers which stages have no version."""

    def __init__(self, workspace: Workspace, partition: str) -> None:
        self.workspace, self.partition = workspace, partition
        self.missing: dict[str, None] = {}

    def version(self, stage: str) -> Version | None:
        """The current version of a stage, if there is one."""
        version = self.workspace.store.current(stage, self.partition)
        if version is None:
            self.missing[stage] = None
        return version

    def rows(self, stage: str, table: schema.Table, latent: int) -> pl.DataFrame:
        """A latent's rows of a table; none if the stage has no version."""
        version = self.version(stage)
        return table.empty() if version is None else _rows(version, table, latent)

    def texts(self, ids: Sequence[int]) -> list[str]:
        """What tokens of the subject model read as."""
        spec = self.workspace.registry.model(self.partition.partition("/")[0])
        return token_texts(spec, self.workspace.model_cache, list(ids))

    def windows(self, contexts: pl.DataFrame) -> tuple[Window, ...]:
        """The windows of rows with columns context, split, decile, offsets and activations."""
        sampled, resolved = self.version("sampled_contexts"), self.version("resolved_saes")
        if sampled is None or resolved is None or contexts.is_empty():
            return ()
        length = int(sampled.manifest.recipe["settings"]["contexts"]["length"])
        tokens = self.workspace.corpus(resolved).contexts(contexts["context"].to_numpy(), length)
        active = dense_activations(contexts, length)
        return tuple(
            Window(row["context"], row["split"], row["decile"], tuple(self.texts(ids)), tuple(values))
            for row, ids, values in zip(contexts.iter_rows(named=True), tokens.tolist(), active.tolist(), strict=True)
        )


def _rows(version: Version, table: schema.Table, latent: int) -> pl.DataFrame:
    """A latent's rows of a table, from the blocks that can hold them."""
    number = f"{latent // schema.BLOCK:06d}"
    blocks = [name for name in version.manifest.blocks if name.split("-")[0] == number]
    found = [version.read(table, name).filter(latent=latent) for name in sorted(blocks)]
    return pl.concat(found) if found else table.empty()


def _explanation(
    rows: pl.DataFrame, explainer: str | None, settings: Iterable[str], partition: str, latent: int
) -> dict[str, Any]:
    """The row of the explanation that is shown."""
    if rows.is_empty():
        raise InputError(
            f"latent {latent} of {partition} is not selected",
            expected="a latent that `latents` of the registry entry selects",
            todo="add it there and materialise again",
        )
    known = rows["explainer"].to_list()
    if explainer is not None:
        if explainer not in known:
            raise InputError(
                f"explainer {explainer!r} has no row for latent {latent} of {partition}",
                expected="one of " + ", ".join(name for name in known if not name.startswith(NULL)),
            )
        return rows.filter(explainer=explainer).row(0, named=True)
    good = rows.filter(status="ok")["explainer"].to_list()
    order = [name for name in settings if not name.startswith(NULL) and name != BASELINE] + [BASELINE, *known]
    chosen = next((name for name in order if name in good), next(name for name in order if name in known))
    return rows.filter(explainer=chosen).row(0, named=True)


def _over_deciles(contexts: pl.DataFrame, n: int) -> pl.DataFrame:
    """At most `n` contexts of the explain split, the strongest of each decile first."""
    ranked = contexts.filter(split="explain").sort("max_activation", "context", descending=[True, False])
    in_decile = pl.int_range(pl.len()).over("decile")
    return (
        ranked.with_columns(turn=in_decile)
        .sort("turn", maintain_order=True)
        .head(n)
        .drop("turn")
        .sort("max_activation", "context", descending=[True, False])
    )


def _scores(
    reading: _Reading, latent: int, explainer: str, mistakes: int
) -> tuple[tuple[Score, ...], tuple[Mistake, ...]]:
    """One score per scorer and judge, by its first kind of negatives, and the hardest mistakes of the first of them."""
    found: list[Score] = []
    hardest: tuple[Mistake, ...] = ()
    for stage in (s for s in STAGES.values() if s.noun == "scores"):
        scorer = stage.name.removesuffix("_scores")
        rows = reading.rows(stage.name, schema.SCORES, latent)
        own = of_first_arm(rows.filter(pl.col("explainer").is_in([explainer, "none"])))
        nulls = rows.filter(pl.col("explainer").str.starts_with(NULL))
        nulls = nulls.filter(nulls["explainer"].map_elements(base_of, return_dtype=pl.String) == explainer)
        for row in own.unique(["judge", "embedder"], keep="first", maintain_order=True).iter_rows(named=True):
            alike = {name: row[name] for name in ("judge", "embedder", "negatives")}
            null = nulls.filter(**alike)["score"].mean() if nulls.height else None
            found.append(
                Score(
                    scorer,
                    row["judge"],
                    row["negatives"],
                    row["metric"],
                    row["n"],
                    row["score"],
                    row["ci_low"],
                    row["ci_high"],
                    null,  # type: ignore[arg-type]
                    row["status"],
                    row["reason"],
                )
            )
            if not hardest and mistakes and row["status"] == "ok" and scorer == "detection":
                hardest = _mistakes(reading, stage.name, latent, explainer, row, mistakes)
    return tuple(found), hardest


def _mistakes(
    reading: _Reading, stage: str, latent: int, explainer: str, score: dict[str, Any], n: int
) -> tuple[Mistake, ...]:
    """Test contexts that the judge of a score got wrong: half of them missed, half of them false alarms."""
    judged = reading.rows(stage, schema.JUDGEMENTS, latent).filter(
        pl.col("prediction") != pl.col("truth"),
        explainer=explainer,
        judge=score["judge"],
        split="test",
    )
    judged = judged.unique("context", keep="first", maintain_order=True)
    wrong = pl.concat(
        [
            judged.filter(truth=truth).sort("evidence", "context", descending=[not truth, False]).head(n - n // 2)
            for truth in (True, False)
        ]
    ).head(n)
    sampled = reading.rows("sampled_contexts", schema.CONTEXTS, latent).filter(split="test")
    rows = wrong.select("context", "split", "decile").join(
        sampled.select("context", "offsets", "activations"), on="context", how="left", maintain_order="left"
    )
    windows = reading.windows(rows.with_columns(pl.col("offsets", "activations").fill_null([])))
    return tuple(
        Mistake(stage.removesuffix("_scores"), row["judge"], row["truth"], row["evidence"], window)
        for row, window in zip(wrong.iter_rows(named=True), windows, strict=True)
    )


def _sayings(explained: Version, latents: Sequence[int], explainer: str) -> dict[int, str]:
    """The labels of some latents by one explainer."""
    found: dict[int, str] = {}
    for number in sorted({latent // schema.BLOCK for latent in latents}):
        name = block_name(f"{number:06d}", explainer)
        if name in explained.manifest.blocks:
            rows = explained.read(schema.EXPLANATIONS, name).filter(pl.col("latent").is_in(list(latents)), status="ok")
            said = "label" if "label" in rows.columns else "explanation"
            found |= dict(rows.select("latent", said).iter_rows())
    return found
