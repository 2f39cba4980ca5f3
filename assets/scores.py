"""scores: each scorer is its own asset."""

from assets import pictures
from assets.checks import judgements_cover
from assets.stage_asset import Runner, stage_asset


@stage_asset(picture=pictures.scores, checks={"judgements_cover": judgements_cover})
def detection_scores() -> Runner:
    from latentgloss.scores import score_detection

    return score_detection
