"""embeddings: vectors of contexts and explanations, and the index people search."""

from assets import pictures
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.vectors)
def context_embeddings() -> Runner:
    from latentgloss.embeddings.stages import embed_contexts

    return embed_contexts


@stage_asset(picture=pictures.vectors)
def explanation_embeddings() -> Runner:
    from latentgloss.embeddings.stages import embed_explanations

    return embed_explanations


@stage_asset(picture=pictures.indexed)
def search_index() -> Runner:
    from latentgloss.embeddings.stages import index_explanations

    return index_explanations
