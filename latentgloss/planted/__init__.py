"""Planted truth: latents that fire by known rules, on which every stage and every scorer can be proven.

- `rules`      what each latent fires on, and what is said of it: truly, too generally, too specifically
- `text`       documents into which the rules' words are strewn
- `model`      a subject model that computes the rules, and its SAE, whole or damaged
- `world`      a workspace of all that, on which the real stages run
- `judges`     judges of known skill, and explainers of known truth
- `attackers`  what can be told without the explanation's meaning, which must be nothing

Importing this package loads neither torch nor transformers. Method: docs/methods.md, Planted truth.
"""
