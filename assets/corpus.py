"""corpus: documents become sequences of tokens, each in one split."""

from assets import pictures
from assets.checks import every_split_has_tokens
from assets.stage_asset import stage_asset
from latentgloss.pipeline.stage_run import Runner


@stage_asset(picture=pictures.tokens_per_split, checks={"every_split_has_tokens": every_split_has_tokens})
def tokenized_corpus() -> Runner:
    """The text that a model reads, without duplicates, divided into splits, tokenized and packed.

    Failed: the text or the model's tokenizer cannot be read, and nothing else of this model can run. Correct the
    model's registry file (`source`, `[corpus]`) as the error says, and materialise the asset again.
    Check `every_split_has_tokens` warns: nothing can be scored. Use more text, or raise `tokens` under `[corpus]`.
    Stale: the text, the tokenizer or a setting of the corpus changed. Every SAE of the model depends on it.
    """
    from latentgloss.corpus.stages import tokenize_corpus

    return tokenize_corpus
