"""Where the repository lies, for tests that read its own files, and one place for conversions of the demo's model."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = ROOT / "registry"


def model_cache() -> Path:
    """A model cache for all tests of a session: unpacking SmolLM2 takes half a minute."""
    return Path(os.environ["LATENTGLOSS_TEST_WORLDS"]) / "models"
