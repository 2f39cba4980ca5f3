"""report: per SAE and explainer, how far it got and how good it is."""

from assets import pictures
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.report)
def score_report() -> Runner:
    from latentgloss.report.stages import report_scores

    return report_scores
