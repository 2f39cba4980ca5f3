"""The judge `embedder`: reads an explanation's label word by word and compares it with the words of a window.

- `reading`  the items that a label names
- `lexicon`  every kind of unit in a corpus: how frequent it is, and its vector
- `fitting`  from a label to the probability that the latent is active on a unit: features and their coefficients
- `judge`    the judge
- `opening`  what it reads of the store

Units are those of `explanations/labels/units.py`, from which labels are made. Method: docs/methods.md, The embedder as
a judge.
"""
