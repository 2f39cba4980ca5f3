"""activations: what each SAE depends on, and every position at which each of its latents is active."""

from assets import pictures
from assets.checks import most_latents_alive
from assets.stage_asset import sae_files, stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.resolved)
def resolved_saes() -> Runner:
    """Everything that an SAE depends on (weights, registry entry, model, corpus), as hashes.

    Skipped or missing: the model has no corpus yet. Materialise `tokenized_corpus` for it first.
    Failed: the SAE's files or its registry entry cannot be used. `latentgloss saes check` lists all problems; correct
    them and materialise the asset again.
    Stale: the weights, the entry, the model or the corpus changed. Only stages that use what changed are recomputed.
    """
    from latentgloss.saes.stages import resolve_saes

    return resolve_saes


@stage_asset(picture=pictures.densities, checks={"most_latents_alive": most_latents_alive})
def activation_cache() -> Runner:
    """The activations of every latent of an SAE over the whole corpus, with one row of statistics per latent.

    Failed: the model or the SAE cannot be loaded, they do not fit each other, or memory or disk is full. Follow the
    error (for a full GPU, lower `batch_tokens` under `[machine]`) and materialise the asset again; finished shards are
    kept.
    Check `most_latents_alive` warns: at least half of the latents never fire. Check the hookpoint, the model and its
    dtype, and whether the corpus is long enough, before you trust any score of this SAE.
    """
    from latentgloss.activations.stages import cache_activations

    return cache_activations


__all__ = ["activation_cache", "resolved_saes", "sae_files"]
