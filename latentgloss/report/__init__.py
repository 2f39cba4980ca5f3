"""report: what the scores of a model's SAEs say together.

- `stages`    the stage `score_report`
- `summary`   medians, specificity and gain per SAE and explainer, with intervals
- `headline`  the report's first screen: a row per SAE, and the latents explained best and worst
- `page`      all rows of the report as a Markdown page
"""
