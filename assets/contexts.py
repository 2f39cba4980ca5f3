"""contexts: where each latent is active, and where it is not."""

from assets import pictures
from assets.checks import any_latent_eligible
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.eligibility, checks={"any_latent_eligible": any_latent_eligible})
def sampled_contexts() -> Runner:
    from latentgloss.contexts.stages import sample_contexts

    return sample_contexts


@stage_asset(picture=pictures.strata)
def sampled_negatives() -> Runner:
    from latentgloss.contexts.stages import sample_negatives

    return sample_negatives
