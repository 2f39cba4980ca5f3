"""scores: how far an explanation can be trusted, judged on contexts the explainer was not shown.

- `stages`          the stages of scorers that judge an explanation
- `intruder_stage`  the stage `intruder_scores`, which judges the latent itself
- `side_by_side`    asking about blocks of latents concurrently
- `judgements`      from answers to judgements and scores
- `table`           `SCORERS`: every scorer, one row each
- `scorers/`        what is asked
- `judges/`         what answers
"""
