"""readers: one file per SAE format; `latentgloss.saes.opening` lists the formats.

- `files`     what the readers share
- `saelens`   folders of SAELens
- `sparsify`  folders of sparsify
"""
