"""activations: from tokens to every active (latent, position) pair of every stale SAE of a model.

- `stages`        the stage `activation_cache`
- `forward_pass`  one pass of a model for several SAEs
- `latents`       one row of statistics per latent
- `quality`       L0 and FVU on a sample
- `reader`        reading latents' activations back
"""
