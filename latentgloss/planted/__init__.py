"""Planted truth: latents that fire by known rules, on which every stage and every scorer can be proven.

- `words`       the words of planted text
- `labels`      labels (a text and what it means) and rules
- `kinds`       the kinds of rules: what each fires on, and its true, too general and too specific labels
- `rules`       all planted latents, with their vocabulary, activations and labels
- `text`        documents into which the rules' words are strewn
- `model`       a subject model that computes the rules, and its SAE, intact or damaged
- `world`       a workspace with all of these, on which the real stages run
- `meaning`     what the text of an explanation means, and the evidence it gives
- `explainers`  explainers of known truth
- `judges`      judges of known skill
- `attackers`   classifiers that try to find the truth without the explanation; they must fail

Importing this package loads neither torch nor transformers. Method: docs/methods.md, Planted truth.
"""
