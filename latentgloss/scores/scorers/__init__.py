"""Scorers: which contexts, marks or trials are asked about. `latentgloss.scores.table.SCORERS` lists the scorers.

- `base`       what a scorer is, and what is asked about a block of latents
- `detection`  activating contexts against strata of non-activating ones (also used by the embedding scorer)
- `fuzzing`    right marks against wrong marks
- `donors`     the exchange of marks between contexts
- `intruder`   the trials of an SAE
- `trials`     drawing trials of intruder detection
- `marked`     windows with their marks, from which trials are drawn
"""
