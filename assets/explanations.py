"""explanations: one row per latent and explainer, including failures."""

from assets import pictures
from assets.checks import explanations_succeed
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.explanations, checks={"explanations_succeed": explanations_succeed})
def explanations() -> Runner:
    """The explanation of each latent by each explainer, or the reason why there is none.

    Failed: an explainer in `[explanations]` is unknown or cannot run, or the language model cannot be reached or has no
    budget left. Start the server, raise `[budget]` or correct the settings, and materialise the asset again: finished
    blocks are kept, and no reply is paid for twice.
    Check `explanations_succeed` warns: more than one in twenty explanations failed. `latentgloss explanations` shows
    each row with its reason; `parse_failed` points to a model that does not follow the prompt (`latentgloss try`).
    Stale with unanswered requests: some latents got no reply. Materialise the asset again to ask for those alone.
    """
    from latentgloss.explanations.stages import explain

    return explain
