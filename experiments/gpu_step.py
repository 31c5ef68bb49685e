"""How long is our step on one GPU: predicted, compiled, measured, and beside PyTorch?

Run:     python -m experiments.gpu_step [--steps 10] [--out FOLDER]
Takes:   about ten minutes on one GPU; needs jax[cuda13], and torch and transformers for
         the last column, which stays empty without them.
Expect:  unverified: nobody has run it on a GPU yet. Three columns near one another, and
         a ratio to transformers under one.

Llama 1B and 8B shapes, with as many layers as fit by prediction, 4096 tokens a
sequence, bfloat16 products on float32 parameters, AdamW, without remat and with full.
Each run and each peer has a process of its own, in turn, so that a noisy neighbour
disturbs both.
"""

import argparse
import bisect
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import scaling_lab as lab
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.hardware import Chip, chip, chip_for
from scaling_lab.record import RunRecord

LENGTH, WARMUP = 4096, 3
#: Share of the memory that a prediction may fill.
FILLED = 0.85
#: Size, sequences a step, remat.
SHAPES = (("1b", 4, "none"), ("1b", 4, "full"), ("8b", 2, "none"), ("8b", 2, "full"))
HEADER = ("model", "layers", "remat", "predicted", "compiled", "measured", "peer", "×")
RESULTS = Path(__file__).parent / "results" / "gpu_step.jsonl"


def configs(of: Chip, steps: int = 20) -> list[lab.RunConfig]:
    """The shapes with as many layers as fit one GPU; what never fits is left out."""
    found = []
    for size, batch, remat in SHAPES:
        words = {"batch": batch, "remat": remat, "steps": steps}
        one = functools.partial(layered, of, size, words)
        depths = range(1, lab.model("llama", size).L + 1)
        room = FILLED * of.hbm_bytes
        fit = bisect.bisect(depths, room, key=lambda n: hbm_bytes(one(n), of))
        found += [one(fit)] if fit else []
    return found


def layered(of: Chip, size: str, words: dict, layers: int) -> lab.RunConfig:
    """A size with so many layers, on one GPU."""
    return lab.configure(
        "llama",
        size,
        "data=1",
        f"{of.name}:1x1",
        length=LENGTH,
        layers=layers,
        precision="bfloat16",
        **words,
    )


def hbm_bytes(config: lab.RunConfig, of: Chip) -> float:
    """What a config is predicted to need."""
    return predict(points_of([config], of)).hbm_bytes[0]


CONFIGS = configs(chip("h100"))


def present() -> Chip:
    """The GPU of this machine, asked of its driver so that no memory is taken."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"no GPU here: nvidia-smi says {error}") from None
    name = names.stdout.splitlines()[0]
    found = chip_for(name)
    if found is None:
        raise SystemExit(f"no file of scaling_lab/hardware knows a {name!r}")
    return found


def peer(config: lab.RunConfig, steps: int) -> list[float]:
    """Seconds of the steps of transformers on the same shapes (runs on the GPU)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c = config.model
    shape = LlamaConfig(
        vocab_size=c.V,
        hidden_size=c.D,
        intermediate_size=c.F,
        num_hidden_layers=c.L,
        num_attention_heads=c.N,
        num_key_value_heads=c.K,
        head_dim=c.H,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(shape).train()
    if config.remat == "full":
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for _ in range(WARMUP + steps):
        tokens = torch.randint(0, c.V, (config.batch, LENGTH), device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP:]


def peer_alone(number: int, of: Chip, steps: int) -> float | None:
    """The median of the peer in a process of its own; `None` if it is not installed."""
    words = ["--peer", f"{number}", "--chip", of.name, "--steps", f"{steps}"]
    command = [sys.executable, "-m", __spec__.name, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"peer: {(done.stderr.splitlines() or ['failed'])[-1]}", file=sys.stderr)
        return None
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of records")
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--chip", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer is not None:
        config = configs(chip(given.chip))[given.peer]
        print(json.dumps(peer(config, given.steps)))
        return
    of = present()
    table = Table(*HEADER, box=None)
    for number, config in enumerate(configs(of, WARMUP + given.steps)):
        found = lab.run_sweep([config], given.out).records[0]
        table.add_row(*line(config, found, peer_alone(number, of, given.steps)))
    Console().print(table)
    Console().print("seconds a step; × is ours over the peer's, below 1 is faster")


def line(config: lab.RunConfig, found: RunRecord, other: float | None) -> list[str]:
    """One row of the table."""
    head = [f"llama {config.size}", f"{config.model.L}", config.remat]
    if found.status != "ok":
        return [*head, found.reason or found.status]
    ours = (found.measured or {})["step_seconds"]["median"]
    columns = [(c or {}).get("step_seconds") for c in (found.predicted, found.compiled)]
    ratio = ours / other if other else None
    return head + [f"{s:.3f}" if s else "" for s in (*columns, ours, other, ratio)]


if __name__ == "__main__":
    main()
