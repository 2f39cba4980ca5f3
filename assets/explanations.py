"""explanations: one row per latent and explainer, failures included."""

from assets import pictures
from assets.checks import explanations_succeed
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.explanations, checks={"explanations_succeed": explanations_succeed})
def explanations() -> Runner:
    from latentgloss.explanations.stages import explain

    return explain
