"""Numbers from judgements: pure functions, vectorised over latents. Definitions: docs/methods.md.

- `metrics`           thresholds, confusion counts, rates at the base rate, chance correction
- `rates`             TPR, TNR, balanced accuracy and accuracy of clustered judgements, with intervals
- `areas`             AUROC with its interval, AUPRC
- `intervals`         Wilson, MOVER
- `clusters`          sums over documents and prompts
- `resampling`        bootstrap medians and paired comparisons over latents
- `crossed`           bootstrap over latents and the documents that they share
- `specificity`       scores compared with null scores
- `multiple_testing`  Holm and Benjamini-Hochberg
- `counter_rng`       counter-based random numbers
"""
