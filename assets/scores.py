"""scores: each scorer is its own asset. Those whose judges may ask a language model share a step."""

from assets import pictures
from assets.checks import donors_found, judgements_cover, questions_answered, trials_made
from assets.stage_asset import one_step, stage_asset, wired
from latentgloss.pipeline.stage_run import Runner


@wired(picture=pictures.scores, checks={"judgements_cover": judgements_cover})
def detection_scores() -> Runner:
    from latentgloss.scores.stages import score_detection

    return score_detection


@wired(picture=pictures.scores, checks={"questions_answered": questions_answered, "donors_found": donors_found})
def fuzzing_scores() -> Runner:
    from latentgloss.scores.stages import score_fuzzing

    return score_fuzzing


@wired(picture=pictures.scores, checks={"trials_made": trials_made})
def intruder_scores() -> Runner:
    from latentgloss.scores.intruder_stage import score_intruder

    return score_intruder


judged_scores = one_step("judged_scores", intruder_scores, detection_scores, fuzzing_scores)


@stage_asset(picture=pictures.scores, checks={"judgements_cover": judgements_cover})
def embedding_scores() -> Runner:
    from latentgloss.scores.stages import score_embedding

    return score_embedding
