"""Each stage, declared once.

    corpus -> activations -> contexts -> explanations -> scores -> report

What belongs here: a stage's name (also its asset key and its folder in the store), grain, inputs, the settings
that decide its content, and its version. Dagster's assets, `latentgloss status` and lineage are derived from this
table; no second list exists. What a stage *does* is in the module of its noun.

A stage's `version` is raised whenever its code can produce other content from the same recipe; a test with
golden outputs fails if that is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentgloss import schema
from latentgloss.pipeline.stage import Input, Stage

if TYPE_CHECKING:
    from latentgloss.store import Version


NEIGHBOUR_VERSION = "2"
"""Of the stratum `neighbour`: in the recipe of `sampled_negatives` where it is asked for. Raised instead of the stage's
version if other windows come to be in that stratum, so that who does not ask for it computes nothing again."""

_SCORERS = ("detection", "fuzzing", "intruder", "embedding")
"""Those with a stage `<scorer>_scores`."""

_MASKED_IF_SHOWN = tuple(
    ("masked", "explanations.explainers", f"{of}{name}")
    for name in ("llm", "llm_cot", "contrastive", "best_of_k")
    for of in ("", "null:")
)
"""Explainers that show marks, which masked tokens never get."""

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
        doc="A bridge: exactly what one SAE depends on (weights, registry entry, model, corpus), as hashes.",
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
            # Who a latent's neighbours are.
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
        version="2",
        inputs=(
            Input("resolved_saes", ("cache", "latents")),  # nulls: who was asked for before whom
            Input("activation_cache", ("latents",), _MASKED_IF_SHOWN),
            Input("sampled_contexts", ("eligibility", "explain", "select")),
            Input("sampled_negatives", ("explain", "select")),
        ),
        settings=("explanations", "contexts.length"),
        tables=(schema.EXPLANATIONS,),
        doc="One row per latent and explainer: the text, how it came about, or why there is none.",
        pool="llm",
    ),
    Stage(
        name="intruder_scores",
        noun="scores",
        grain="sae",
        version="2",
        inputs=(
            Input("resolved_saes", ("cache", "latents")),  # who was asked for before whom
            Input("activation_cache", ("activations", "masked")),
            Input("sampled_contexts", ("eligibility", "test")),
        ),
        settings=("profile", "intruder", "contexts.length"),
        tables=(schema.TRIALS, schema.JUDGEMENTS, schema.SCORES),
        doc="Which of five marked contexts is another latent's? Judges the latent, without an explanation.",
        pool="llm",
    ),
    Stage(
        name="detection_scores",
        noun="scores",
        grain="sae",
        version="2",
        inputs=(
            Input("resolved_saes", ("cache",)),
            Input("explanations"),
            Input("sampled_contexts", ("eligibility", "explain", "select", "test")),
            Input("sampled_negatives", ("explain", "select", "test")),
        ),
        settings=("profile", "detection", "contexts.length"),
        tables=(schema.JUDGEMENTS, schema.SCORES),
        doc="Is the latent active in this context? Judged from the explanation alone, on the test split.",
        pool="llm",
    ),
    Stage(
        name="fuzzing_scores",
        noun="scores",
        grain="sae",
        version="2",
        inputs=(
            Input("resolved_saes", ("cache",)),
            Input("activation_cache", ("masked",)),
            Input("explanations"),
            Input("sampled_contexts", ("eligibility", "explain", "select", "test")),
            Input("sampled_negatives", ("explain", "select", "test"), when=("fuzzing.wrong_marks", "random")),
        ),
        settings=("profile", "fuzzing", "contexts.length"),
        tables=(schema.JUDGEMENTS, schema.SCORES),
        doc="Are the marked tokens those the latent is active on? Its own marks against another context's.",
        pool="llm",
    ),
    Stage(
        name="embedding_scores",
        noun="scores",
        grain="sae",
        version="2",
        inputs=(
            Input("resolved_saes", ("cache",)),
            Input("explanations"),
            Input("sampled_contexts", ("eligibility", "test")),
            Input("sampled_negatives", ("test",)),
        ),
        settings=("profile", "embedding", "contexts.length"),
        tables=(schema.JUDGEMENTS, schema.SCORES),
        doc="Does the explanation lie nearer to activating contexts than to others, as vectors of an embedder?",
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
        # Vectors of explanations are here for order alone; scores come last, since the bridge follows its last input.
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
"""In an order in which every stage comes after its inputs."""

NOUNS = ("corpus", "activations", "contexts", "explanations", "scores", "report", "embeddings")
"""The six of the flow in order, and what stands beside it."""


def made_from(version: Version, upstream: Version) -> bool:
    """Whether a version was made from the content of this version of one of its inputs.

    What is current of two stages need not belong together: the later one may not have been computed again yet.
    """
    recipe = version.manifest.recipe
    return all(
        recipe["inputs"].get(i.stage) == upstream.content(parts)
        for i, parts in STAGES[version.manifest.stage].reads(recipe["settings"])
        if i.stage == upstream.manifest.stage
    )


def profile_of(version: Version) -> str:
    """Whose protocol the scores of a version follow (setting `profile`)."""
    return str(version.manifest.recipe["settings"].get("profile", schema.DEFAULT_PROFILE))


def downstream(name: str) -> list[str]:
    """Names of every stage that depends on `name`, in order."""
    found = {name}
    for stage in _ALL:
        if any(i.stage in found for i in stage.inputs):
            found.add(stage.name)
    return [stage.name for stage in _ALL if stage.name in found and stage.name != name]
