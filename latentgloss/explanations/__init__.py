"""The explanations of an SAE's latents: exactly one row per latent and explainer.

- `stages`       the stage `explanations`
- `evidence`     gathers what explainers may know of each latent
- `nulls`        null explanations: other latents' texts, as a baseline
- `explainers/`  turn the evidence of a latent into an explanation
"""
