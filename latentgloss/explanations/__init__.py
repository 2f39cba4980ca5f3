"""The explanations of an SAE's latents: exactly one row per latent and explainer.

- `stages`       the stage `explanations`
- `evidence`     gathers what explainers may know of each latent
- `examples`     the contexts of one latent as arrays
- `nulls`        null explanations: other latents' texts, as a baseline
- `explainers/`  turn the evidence of a latent into an explanation
- `labels/`      what an explanation says in at most 120 characters, and what kind of latent it is about
"""
