"""corpus: documents become sequences of tokens, each of one split."""

from assets import pictures
from assets.checks import every_split_has_tokens
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.tokens_per_split, checks={"every_split_has_tokens": every_split_has_tokens})
def tokenized_corpus() -> Runner:
    from latentgloss.corpus.stages import tokenize_corpus

    return tokenize_corpus
