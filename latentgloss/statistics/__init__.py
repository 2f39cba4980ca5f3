"""Numbers from judgements: pure, vectorised functions over latents. Definitions: docs/methods.md.

- `metrics`           confusion counts, thresholds, AUPRC, prevalence weighting, chance correction
- `intervals`         Wilson, clustered DeLong, MOVER, clustered shares
- `resampling`        bootstrap intervals and paired comparisons over latents
- `clusters`          sums over documents and prompts
- `specificity`       a score held against null scores
- `multiple_testing`  Holm and Benjamini-Hochberg
- `counter_rng`       counter-based random numbers
"""
