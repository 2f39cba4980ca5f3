"""contexts: samples of the contexts in which each latent is active, and of those in which it is not."""

from assets import pictures
from assets.checks import any_latent_eligible
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.eligibility, checks={"any_latent_eligible": any_latent_eligible})
def sampled_contexts() -> Runner:
    """Which latents can be explained and scored, and a sample of activating contexts for each of them.

    Failed: the activation cache is missing or damaged, or the registry entry selects latents that the SAE does not
    have. The error names the file or entry to correct; then materialise the asset again. Finished blocks are kept.
    Check `any_latent_eligible` warns: this SAE gets no explanations and no scores. Use a longer corpus; the column
    `reason` of the table `eligibility` says what each latent lacks.
    """
    from latentgloss.contexts.stages import sample_contexts

    return sample_contexts


@stage_asset(picture=pictures.strata)
def sampled_negatives() -> Runner:
    """A sample of non-activating contexts of each latent, by stratum.

    Failed: the activation cache is missing or damaged, or an embedder is needed (stratum `similar`) and cannot be used.
    Correct what the error names (`[negatives]` or `registry/embedders/`) and materialise the asset again. Finished
    blocks are kept.
    A stratum without contexts is not an error: baselines of neurons have no neighbours, and a dense latent has few
    contexts of any kind.
    """
    from latentgloss.contexts.stages import sample_negatives

    return sample_negatives
