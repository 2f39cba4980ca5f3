"""The explainer `pattern`: a few rules about the tokens on which a latent fires.

- `rules`      what rules are and what they predict
- `learning`   learns the rules from examples
- `sentence`   writes the rules as one sentence, and reads them back
- `explainer`  the explainer that combines the three
"""
