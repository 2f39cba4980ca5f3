"""Explainers: each makes an explanation of what is known of a latent. `table.EXPLAINERS` lists them."""

from latentgloss.explanations.explainers.base import Evidence, Explained, Explainer
from latentgloss.explanations.explainers.table import (
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
