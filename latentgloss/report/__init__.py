"""Report: what the scores of a model's SAEs say together."""

from latentgloss.report.summary import report_scores

__all__ = ["report_scores"]
