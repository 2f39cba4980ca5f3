"""readers: one file per SAE format; `latentgloss.saes.opening` lists the formats.

- `config`    the JSON configuration of an SAE
- `files`     what the readers share about weights
- `saelens`   folders of SAELens
- `sparsify`  folders of sparsify
"""
