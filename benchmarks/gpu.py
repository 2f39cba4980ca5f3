"""Measures caching and embedding on a GPU: whether results agree, how the time is used, and delphi for comparison.

    python benchmarks/gpu.py                       all parts; the total time on a GPU is not known yet
    python benchmarks/gpu.py --parts caching       one of the parts below
    python benchmarks/gpu.py --device cpu --quick  a trial of all parts on a CPU; records nothing

Models have the shapes of SmolLM2-135M and of Llama-3.2-1B and random weights, because speed depends only on shapes.
SAEs are random, too (`world.py`), and texts are shuffled words of Python's documentation.

- **agreement** (`gpu_agreement.py`): the cache of one model, SAE and corpus is made once on the CPU and three times on
  the GPU, the last time by another process. Are they the same data version?
- **batches** (`gpu_caching.py`): tokens/s of the pass by tokens per forward pass, and by the number of threads that
  sort and write at the same time.
- **caching** (`gpu_caching.py`): the speed of the pass relative to the bare forward pass up to the hookpoint, in equal
  batches, with peaks of memory. With 131,072 latents there is one pair, because statistics of all latents follow each
  pass. `encode` is the time of encoding alone. The rest of the pass's time is `waiting`, during which the GPU is idle.
- **encoding** (`gpu_encoding.py`): milliseconds of encoding, of its steps, and of the functions that these replace, up
  to 2^20 latents of width 2,048.
- **delphi** (`gpu_caching.py`) runs in the same environment (`pip install --no-deps eai-delphi eai-sparsify` and the
  packages that they import), with the fastest batch size of those tried; see `vs_delphi.py`.
- **embedding** (`gpu_embedding.py`): texts/s of a model of MiniLM's shape, and whether a text's vector has the same
  bits in any batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import world
from gpu_agreement import agreement
from gpu_caching import batches, caching, delphi
from gpu_embedding import embeddings
from gpu_encoding import encoding
from gpu_worlds import MODELS, Bench

PARTS = {
    "encoding": encoding,
    "agreement": agreement,
    "batches": batches,
    "caching": caching,
    "delphi": delphi,
    "embedding": embeddings,
}


def main() -> None:
    """Runs the parts that the command line names, and records each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["135m", "1b"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokenizer", help="folder with SmolLM2's tokenizer; default: the installed package's")
    parser.add_argument("--text", help="JSON lines with texts of about 3M tokens; default: shuffled words, made anew")
    parser.add_argument("--minilm", help="folder with MiniLM's configuration and tokenizer; likewise")
    parser.add_argument("--quick", action="store_true", help="a trial of a minute or two; records nothing")
    arguments = parser.parse_args()
    import torch

    about: dict[str, Any] = {"torch": str(torch.__version__)}
    if arguments.device != "cpu":
        about["gpu"] = torch.cuda.get_device_name(torch.device(arguments.device))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(arguments, Path(name))
        for part in arguments.parts:
            if part == "delphi" and importlib.util.find_spec("delphi") is None:
                print("delphi is not installed: left out", file=sys.stderr)
                continue
            start = time.perf_counter()
            result = PARTS[part](bench)
            about["seconds"] = round(time.perf_counter() - start, 1)
            if arguments.quick:
                print(part, json.dumps({**about, **result}, indent=1), flush=True)
            else:
                world.record(f"gpu-{part}", {**about, "results": result})


if __name__ == "__main__":
    main()
