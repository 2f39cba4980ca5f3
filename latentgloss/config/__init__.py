"""What users write: settings (`latentgloss.toml`) and the registry of models, SAEs, embedders and language models.

- `settings`  every setting, in one table per stage or purpose
- `entries`   the fields of a registry entry of each kind
- `registry`  reading the registry's TOML files and finding entries by name
- `toml`      reading a TOML file and reporting its mistakes
"""

from latentgloss.config.registry import Registry
from latentgloss.config.settings import Settings

__all__ = ["Registry", "Settings"]
