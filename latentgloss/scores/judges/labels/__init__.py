"""The judge `embedder`: reads an explanation's label word by word and compares it with the words of a window.

- `units`    a window as words, numbers, line breaks and marks
- `reading`  the items that a label names
- `lexicon`  every kind of unit in a corpus: how frequent it is, and its vector
- `fitting`  from a label to the probability that the latent is active on a unit: features and their coefficients
- `judge`    the judge

Method: docs/methods.md, The embedder as a judge.
"""
