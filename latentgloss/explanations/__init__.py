"""explanations: one row per latent and explainer, always.

- `stages`       the stage `explanations`
- `evidence`     what explainers may know of a latent
- `nulls`        other latents' explanations, as a yardstick
- `explainers/`  what makes an explanation of the evidence
"""
