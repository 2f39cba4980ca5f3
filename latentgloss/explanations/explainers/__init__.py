"""Explainers: each turns the evidence of a latent into an explanation.

- `base`          what passes between the stage and an explainer
- `table`         the list of explainers (`EXPLAINERS`), names of nulls and of blocks
- `pattern/`      the explainer `pattern`
- `token_table`   the explainer `token_table`
- `llm`           the explainers `llm`, `llm_cot` and `contrastive`
- `replies`       what their replies must look like, and how they are read
- `best_of_k`     the explainer `best_of_k`
- `imported`      the explainer `imported`
- `programs`      executable explanations, read back from stored JSON
- `program_json`  what all kinds of programs share when they are read
"""

from latentgloss.explanations.explainers.base import Evidence, Explained, Explainer
from latentgloss.explanations.explainers.table import (
    BASELINE,
    EXPLAINERS,
    NULL,
    base_of,
    block_name,
    explainer_of,
    identities,
    in_order,
    nulls_of,
    without_number,
)

__all__ = [
    "BASELINE",
    "EXPLAINERS",
    "NULL",
    "Evidence",
    "Explained",
    "Explainer",
    "base_of",
    "block_name",
    "explainer_of",
    "identities",
    "in_order",
    "nulls_of",
    "without_number",
]
