"""scores: one asset per scorer. Scorers whose judges may ask a language model share a step."""

from assets import pictures
from assets.checks import donors_found, judgements_cover, questions_answered, trials_made
from assets.stage_asset import one_step, stage_asset, wired
from latentgloss.pipeline.stage_run import Runner


@wired(picture=pictures.scores, checks={"judgements_cover": judgements_cover})
def detection_scores() -> Runner:
    """How well each explanation tells contexts in which the latent is active from contexts in which it is not.

    Failed: a judge in `[detection]` is unknown, or a language model cannot be reached or has no budget left. Correct
    the settings, start the server or raise `[budget]`, and materialise the asset again: finished blocks are kept, and
    no reply is paid for twice.
    Check `judgements_cover` warns: many judgements could not be counted, so scores rest on the contexts that were
    judged successfully. The columns `status` and `reason` of the table `judgements` say why.
    """
    from latentgloss.scores.stages import score_detection

    return score_detection


@wired(picture=pictures.scores, checks={"questions_answered": questions_answered, "donors_found": donors_found})
def fuzzing_scores() -> Runner:
    """How well each explanation tells a latent's own marks from wrong marks in the same contexts.

    Failed: as for `detection_scores`, with the settings in `[fuzzing]`.
    Check `questions_answered` warns: many questions got no readable answer. The columns `status` and `reason` of the
    table `judgements` say why.
    Check `donors_found` warns: many contexts found no donor of wrong marks, as is usual for latents that are active on
    most of a window. The scores then describe only the other contexts; nothing has to be repaired.
    """
    from latentgloss.scores.stages import score_fuzzing

    return score_fuzzing


@wired(picture=pictures.scores, checks={"trials_made": trials_made})
def intruder_scores() -> Runner:
    """How often judges find the one of five marked contexts that belongs to another latent. No explanation is used.

    Empty: `[intruder]` names no judge, which is the default.
    Failed: as for `detection_scores`, with the settings in `[intruder]`.
    Check `trials_made` warns: fewer than half of the trials could be made, because latents have too few test contexts
    (use a longer corpus) or no other latent's context fits; or fewer than 95 % of them were answered. The column
    `reason` of the tables `trials` and `judgements` says which.
    """
    from latentgloss.scores.intruder_stage import score_intruder

    return score_intruder


judged_scores = one_step("judged_scores", intruder_scores, detection_scores, fuzzing_scores)


@stage_asset(picture=pictures.scores, checks={"judgements_cover": judgements_cover})
def embedding_scores() -> Runner:
    """How much closer each explanation is to activating contexts than to other contexts, as vectors of an embedder.

    Failed: an embedder in `[embedding]` is not in the registry or cannot be loaded, or a table of vectors is damaged.
    Correct the entry, or run `latentgloss index rebuild`, and materialise the asset again. Finished blocks are kept.
    Check `judgements_cover` warns: some contexts or explanations got no vector. The columns `status` and `reason` of
    the table `judgements` say why.
    """
    from latentgloss.scores.stages import score_embedding

    return score_embedding
