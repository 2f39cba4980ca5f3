"""scores: how far an explanation can be trusted, judged on contexts that its explainer was not shown.

- `stages`            the stages `detection_scores`, `fuzzing_scores` and `embedding_scores`
- `intruder_stage`    the stage `intruder_scores`, which judges latents without an explanation
- `side_by_side`      asking about blocks of latents concurrently
- `explained_blocks`  scoring the explanations of one block
- `judgements`        from answers to judgements
- `score_rows`        from judgements to scores
- `padded`            judgements as padded arrays
- `first_explained`   the first explanations of an explainer, on which some judges depend
- `table`             `SCORERS`: every scorer, one row each
- `scorers/`          what is asked
- `judges/`           what answers
"""
