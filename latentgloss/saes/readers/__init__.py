"""One reader per SAE format. `files.py` has what they share; `latentgloss.saes.opening` lists them."""
