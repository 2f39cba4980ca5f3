"""activations: what each SAE depends on, and every active (latent, position) pair."""

from assets import pictures
from assets.checks import most_latents_alive
from assets.stage_asset import sae_files, stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.resolved)
def resolved_saes() -> Runner:
    from latentgloss.saes.stages import resolve_saes

    return resolve_saes


@stage_asset(picture=pictures.densities, checks={"most_latents_alive": most_latents_alive})
def activation_cache() -> Runner:
    from latentgloss.activations.stages import cache_activations

    return cache_activations


__all__ = ["activation_cache", "resolved_saes", "sae_files"]
