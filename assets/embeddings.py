"""embeddings: vectors of contexts and explanations, and the search index."""

from assets import pictures
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.vectors)
def context_embeddings() -> Runner:
    """A vector for each distinct context of a model's corpus, computed before a scorer needs it.

    Failed: an embedder in `[embedding]` is not in the registry or cannot be loaded, memory or disk is full, or a table
    of vectors is damaged (`latentgloss index rebuild` removes it). Follow the error and materialise the asset again;
    vectors that were written are kept.
    Missing or stale: nothing is wrong, because a stage that needs a vector computes it. This asset only saves time.
    """
    from latentgloss.embeddings.stages import embed_contexts

    return embed_contexts


@stage_asset(picture=pictures.vectors)
def explanation_embeddings() -> Runner:
    """A vector for each distinct explanation of an SAE, computed before a scorer or the search index needs it.

    Failed, missing or stale: as for `context_embeddings`.
    Many texts cut (in the asset's table): long explanations are compared by their beginnings only. Use an embedder that
    reads longer texts if that matters.
    """
    from latentgloss.embeddings.stages import embed_explanations

    return embed_explanations


@stage_asset(picture=pictures.indexed)
def search_index() -> Runner:
    """All explanations of a model's SAEs in one LanceDB table, which `latentgloss search` reads.

    Skipped or missing: no SAE of the model has explanations and scores yet. Materialise those of one SAE first.
    Failed: the index is damaged, or was made with another embedder than `[search]` names. Run `latentgloss index
    rebuild`; nothing is lost, because the index is derived from the store.
    Stale: searches use the explanations and scores of the last run. Materialise the asset again to include the changes.
    """
    from latentgloss.embeddings.stages import index_explanations

    return index_explanations
