"""contexts: windows of tokens in which a latent fires, and windows in which it does not.

- `stages`          the stages `sampled_contexts` and `sampled_negatives`
- `blocks`          the loop over blocks of latents that both stages share
- `latent_sample`   which latents are selected, and which are sampled for costly stages
- `windows`         which windows of the corpus are usable, and why the others are not
- `firing`          where the latents of a block fire: one cell per (latent, window)
- `population`      usable activating windows in random order, with their deciles
- `activating`      eligibility and the samples of activating windows
- `layout`          usable windows in order of split and document, and intervals of them
- `negatives`       the strata of non-activating windows and the samples of each
- `hard_negatives`  the strata `similar` and `neighbour`
- `permutation`     random permutations without a table
- `keys`            packed keys: fields in one integer
- `marks`           which tokens of a context are marked as active
"""
