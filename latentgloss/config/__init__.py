"""What people write: settings (`latentgloss.toml`) and the registry of models, SAEs and language models.

- `settings`  every setting, one table per stage
- `registry`  one TOML file per model, SAE, embedder and language model
- `toml`      reading TOML and saying what is wrong with it
"""

from latentgloss.config.registry import Registry
from latentgloss.config.settings import Settings

__all__ = ["Registry", "Settings"]
