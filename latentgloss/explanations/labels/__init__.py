"""Labels: what an explanation says in at most 120 characters, and what kind of latent it is about.

- `units`       the words, numbers and marks of a window, and the one in which each token lies
- `firing`      on which of them a latent fires, how often, and with how much activation
- `choice`      the few that a label names
- `kinds`       the kind of a latent: one word, a class, a prefix, a phrase, a topic …
- `wording`     the label
- `shortening`  the label of an explanation that was written as a text
"""

from latentgloss.explanations.labels.kinds import KINDS
from latentgloss.explanations.labels.shortening import MOST, shortened
from latentgloss.explanations.labels.units import UnitReader, unit_reader
from latentgloss.explanations.labels.wording import VERSION, Label, label_of

__all__ = ["KINDS", "MOST", "VERSION", "Label", "UnitReader", "label_of", "shortened", "unit_reader"]
