"""report: what the scores of a model's SAEs say together.

- `stages`   the stage `score_report`
- `summary`  medians, specificity and gain per SAE and explainer, with intervals
"""
