"""contexts: windows of tokens in which a latent fires, and in which it does not.

- `stages`          the stages `sampled_contexts` and `sampled_negatives`
- `activating`      eligibility, deciles, samplers
- `negatives`       strata of non-activating windows
- `hard_negatives`  the strata `similar` and `neighbour`
- `layout`          usable windows by split and document
- `windows`         which windows are usable, and why others are not
- `firing`          where latents fire, as cells
- `population`      the windows samples are drawn from
- `blocks`          the loop over blocks of latents
- `marks`           which tokens of a window are marked
- `latent_sample`   which latents are asked about
"""
