"""Labels: what an explanation says in at most 120 characters.

- `shortening`  the label of an explanation that was written as a text
"""

from latentgloss.explanations.labels.shortening import MOST, shortened

__all__ = ["MOST", "shortened"]
