"""What answers a scorer's questions: executed programs, language models, cosines. `opening` finds one by its name."""
