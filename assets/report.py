"""report: for each SAE and explainer, how many latents were explained and scored, and how well."""

from assets import pictures
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.report)
def score_report() -> Runner:
    """The scores of all SAEs of a model, summarised as medians with intervals.

    Skipped or missing: no SAE of the model has scores yet. Materialise the scores of at least one SAE first.
    Failed: a version that it reads is damaged. Run the command in the error and materialise what it names again.
    Incomplete: SAEs without scores are not in the report, and scores of explanations or contexts that have changed
    since are left out; the fact `scores_behind` lists them. Materialise these scores, then the report.
    """
    from latentgloss.report.stages import report_scores

    return report_scores
