"""Every table in the store: its columns with their dtypes, units and meanings.

- `table`        what a table and a column are; constants that several tables share (`SPLITS`, `STRATA`, `BLOCK`, …)
- `corpus`       documents, spans, sequences
- `activations`  activations, masked, latents
- `contexts`     eligibility, contexts, negatives, strata
- `explanations` explanations
- `scores`       judgements, trials, scores
- `report`       report

`docs/data_dictionary.md` is generated from this package (`make docs`).
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
