"""What each scorer asks about: contexts, marks, trials. `latentgloss.scores.table.SCORERS` lists the scorers."""
