"""All stages, each declared once.

    corpus -> activations -> contexts -> explanations -> scores -> report

A declaration holds the stage's name (also its asset key and its folder in the store), grain, inputs, version and the
settings that decide its content. Dagster's assets, `latentgloss status` and lineage are derived from these
declarations; there is no second list. The code of a stage is in the `stages.py` of its noun.

Raise a stage's `version` whenever its code can produce different content from the same recipe. A test that compares
outputs with stored ones (golden outputs) fails if the version was not raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss import schema
from latentgloss.pipeline.stage import Input, Stage

if TYPE_CHECKING:
    from latentgloss.pipeline.stage import Pool
    from latentgloss.store import Version


NEIGHBOUR_VERSION = "2"
"""Version of the stratum `neighbour`; part of the recipe of `sampled_negatives` only if that stratum is enabled.

When a change puts different windows into this stratum, raise this version instead of the stage's, so that users who
have not enabled the stratum recompute nothing."""

_SCORERS = ("detection", "fuzzing", "intruder", "embedding")
"""Scorers that have a stage `<scorer>_scores`."""

_MASKED_IF_SHOWN = tuple(
    ("masked", "explanations.explainers", f"{prefix}{name}")
    for name in ("llm", "llm_cot", "contrastive", "best_of_k")
    for prefix in ("", "null:")
)
"""Part `masked` matters to explainers that mark tokens in the contexts they show: a masked token is never marked."""


def _explanation_scores(
    scorer: str,
    doc: str,
    *,
    version: str,
    splits: tuple[str, ...] = ("explain", "select", "test"),
    activations: tuple[Input, ...] = (),
    negatives_when: tuple[str, Any] | None = None,
    pool: Pool = "llm",
) -> Stage:
    """A stage that scores explanations on sampled contexts and negatives.

    `splits`: the splits it reads. `activations`: what it reads of the activation cache. `negatives_when`: (setting,
    value), negatives are read only if the setting has the value; None: always.
    """
    return Stage(
        name=f"{scorer}_scores",
        noun="scores",
        grain="sae",
        version=version,
        inputs=(
            Input("resolved_saes", ("cache",)),
            *activations,
            Input("explanations"),
            Input("sampled_contexts", ("eligibility", *splits)),
            Input("sampled_negatives", splits, when=negatives_when),
        ),
        settings=("profile", scorer, "contexts.length"),
        tables=(schema.JUDGEMENTS, schema.SCORES),
        doc=doc,
        pool=pool,
    )


_ALL = (
    Stage(
        name="tokenized_corpus",
        noun="corpus",
        grain="model",
        version="1",
        inputs=(),
        settings=("corpus",),
        tables=(schema.DOCUMENTS, schema.SPANS, schema.SEQUENCES),
        doc="Documents, deduplicated, split by near-duplicate cluster, tokenized and packed per split.",
    ),
    Stage(
        name="resolved_saes",
        noun="activations",
        grain="sae",
        version="1",
        inputs=(Input("tokenized_corpus"),),
        settings=(),
        tables=(),
        doc="A bridge: everything that one SAE depends on (weights, registry entry, model, corpus), as hashes.",
    ),
    Stage(
        name="activation_cache",
        noun="activations",
        grain="sae",
        version="2",
        inputs=(Input("resolved_saes", ("cache",)),),
        settings=("activations",),
        tables=(schema.ACTIVATIONS, schema.MASKED, schema.LATENTS),
        doc="Every active (latent, position) pair of the corpus, and one row of statistics per latent.",
        pool="gpu",
    ),
    Stage(
        name="sampled_contexts",
        noun="contexts",
        grain="sae",
        version="2",
        inputs=(Input("resolved_saes", ("cache", "latents")), Input("activation_cache", ("activations", "masked"))),
        settings=("contexts",),
        tables=(schema.ELIGIBILITY, schema.CONTEXTS),
        doc="Which latents can be explained and scored, and the activating contexts sampled for each.",
    ),
    Stage(
        name="sampled_negatives",
        noun="contexts",
        grain="sae",
        version="2",
        inputs=(
            Input("resolved_saes", ("cache", "latents")),
            # Activations decide which latents are neighbours.
            Input("activation_cache", ("activations", "masked"), (("latents", "negatives.strata", "neighbour"),)),
        ),
        settings=("negatives", "contexts.length", "contexts.pool"),
        tables=(schema.NEGATIVES, schema.STRATA_SHARES),
        doc="Non-activating contexts of each latent, by stratum, with the strata's share of the population.",
    ),
    Stage(
        name="explanations",
        noun="explanations",
        grain="sae",
        version="3",
        inputs=(
            Input("resolved_saes", ("cache", "latents")),  # the order of latents decides the partners of nulls
            Input("activation_cache", ("latents",), _MASKED_IF_SHOWN),
            Input("sampled_contexts", ("eligibility", "explain", "select")),
            Input("sampled_negatives", ("explain", "select")),
        ),
        settings=("explanations", "contexts.length"),
        tables=(schema.EXPLANATIONS,),
        doc="One row per latent and explainer: the text and how it was made, or why there is none.",
        pool="llm",
    ),
    Stage(
        name="intruder_scores",
        noun="scores",
        grain="sae",
        version="2",
        inputs=(
            Input("resolved_saes", ("cache", "latents")),  # the order of latents decides the intruders
            Input("activation_cache", ("activations", "masked")),
            Input("sampled_contexts", ("eligibility", "test")),
        ),
        settings=("profile", "intruder", "contexts.length"),
        tables=(schema.TRIALS, schema.JUDGEMENTS, schema.SCORES),
        doc="Which of five marked contexts is another latent's? Judges the latent, without an explanation.",
        pool="llm",
    ),
    _explanation_scores(
        "detection",
        "Is the latent active in this context? Judged from the explanation alone, on the test split.",
        version="2",
    ),
    _explanation_scores(
        "fuzzing",
        "Are the marked tokens those the latent is active on? Its own marks against another context's.",
        version="2",
        activations=(Input("activation_cache", ("masked",)),),
        negatives_when=("fuzzing.wrong_marks", "random"),
    ),
    _explanation_scores(
        "embedding",
        "Is the explanation closer to activating contexts than to others, as vectors of an embedder?",
        version="2",
        splits=("test",),
        pool="gpu",
    ),
    Stage(
        name="context_embeddings",
        noun="embeddings",
        grain="model",
        version="1",
        inputs=(Input("tokenized_corpus"),),
        settings=("embedding.embedders", "contexts.length"),
        tables=(),
        doc="A vector for each distinct window that contexts are sampled from, in LanceDB; this is its record.",
        pool="gpu",
    ),
    Stage(
        name="explanation_embeddings",
        noun="embeddings",
        grain="sae",
        version="1",
        inputs=(Input("explanations"),),
        settings=("embedding.embedders",),
        tables=(),
        doc="A vector for each distinct explanation, in LanceDB; this is its record.",
        pool="gpu",
    ),
    Stage(
        name="search_index",
        noun="embeddings",
        grain="model",
        version="2",
        # Vectors of explanations are an input only so that they are made first. Scores come last because automation
        # of a stage that reads another grain watches the noun of its last input.
        inputs=(
            Input("activation_cache", ("latents",)),
            Input("explanations"),
            Input("explanation_embeddings"),
            *(Input(f"{scorer}_scores", ("scores",), optional=True) for scorer in _SCORERS),
        ),
        settings=("search",),
        tables=(),
        doc="Explanations of every SAE of a model in one LanceDB table: vectors, full text, scores.",
    ),
    Stage(
        name="score_report",
        noun="report",
        grain="model",
        version="2",
        inputs=(
            Input("activation_cache", ("latents",)),
            Input("sampled_contexts", ("eligibility",)),
            Input("explanations"),
            *(Input(f"{scorer}_scores", ("scores",), optional=True) for scorer in _SCORERS),
        ),
        settings=("report",),
        tables=(schema.REPORT,),
        doc="Per SAE and explainer: latents alive, eligible, explained, scored; medians with intervals.",
    ),
)

STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
"""By name, in an order in which every stage comes after its inputs."""

NOUNS = ("corpus", "activations", "contexts", "explanations", "scores", "report", "embeddings")
"""The six nouns of the flow in order, then `embeddings`, which stands beside the flow."""


def made_from(version: Version, upstream: Version) -> bool:
    """Whether `version` was made from the content that `upstream`, a version of one of its input stages, holds.

    The current versions of two stages may not match: the later stage may not have been recomputed yet.
    """
    recipe = version.manifest.recipe
    return all(
        recipe["inputs"].get(i.stage) == upstream.content(parts)
        for i, parts in STAGES[version.manifest.stage].reads(recipe["settings"])
        if i.stage == upstream.manifest.stage
    )


def profile_of(version: Version) -> str:
    """The profile whose protocol the scores of a version follow (setting `profile`)."""
    return str(version.manifest.recipe["settings"].get("profile", schema.DEFAULT_PROFILE))


def downstream(name: str) -> list[str]:
    """Names of all stages that depend on `name`, directly or not, in the order of `STAGES`."""
    found = {name}
    for stage in _ALL:
        if any(i.stage in found for i in stage.inputs):
            found.add(stage.name)
    return [stage.name for stage in _ALL if stage.name in found and stage.name != name]
