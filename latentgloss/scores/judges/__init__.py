"""Judges: what answers the questions of a scorer.

- `opening`         judges by name, from the settings of a scorer
- `executing`       runs the program of an explanation
- `reading`         a language model reads the explanation (detection, fuzzing)
- `intruder`        a language model, or a rule without one, looks for the intruder
- `labels/`         an embedder reads the label, word by word
- `strengths`       what judges that predict strengths of tokens have in common
- `cosine`          compares vectors of explanation and context
- `language_model`  what judges that ask a language model have in common
"""
