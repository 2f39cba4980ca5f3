"""Every table of the store: its columns with dtypes, units and meaning, one file per noun.

What belongs here: `Table` and `Column` (`table.py`), the tables themselves, and the few words that they share
(`SPLITS`, `STRATA`, `BLOCK`, …). `docs/data_dictionary.md` is generated from this package.
"""

from latentgloss.schema.activations import ACTIVATIONS, LATENTS, MASKED
from latentgloss.schema.contexts import CONTEXTS, ELIGIBILITY, NEGATIVES, STRATA_SHARES
from latentgloss.schema.corpus import DOCUMENTS, SEQUENCES, SPANS
from latentgloss.schema.explanations import EXPLANATIONS
from latentgloss.schema.report import REPORT
from latentgloss.schema.scores import JUDGEMENTS, SCORES, TRIALS
from latentgloss.schema.table import (
    BLOCK,
    DEFAULT_PROFILE,
    GRAM,
    POPULATION,
    SPLITS,
    STRATA,
    Column,
    Table,
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        DOCUMENTS,
        SPANS,
        SEQUENCES,
        ACTIVATIONS,
        MASKED,
        LATENTS,
        ELIGIBILITY,
        CONTEXTS,
        NEGATIVES,
        STRATA_SHARES,
        EXPLANATIONS,
        JUDGEMENTS,
        TRIALS,
        SCORES,
        REPORT,
    )
}

__all__ = [
    "ACTIVATIONS",
    "BLOCK",
    "CONTEXTS",
    "DEFAULT_PROFILE",
    "DOCUMENTS",
    "ELIGIBILITY",
    "EXPLANATIONS",
    "GRAM",
    "JUDGEMENTS",
    "LATENTS",
    "MASKED",
    "NEGATIVES",
    "POPULATION",
    "REPORT",
    "SCORES",
    "SEQUENCES",
    "SPANS",
    "SPLITS",
    "STRATA",
    "STRATA_SHARES",
    "TABLES",
    "TRIALS",
    "Column",
    "Table",
]
