"""report: what the scores of a model's SAEs say together.

- `stages`   the stage `score_report`
- `summary`  medians, intervals and tests per SAE and explainer
"""
