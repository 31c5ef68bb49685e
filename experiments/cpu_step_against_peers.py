"""How long is our step on a CPU beside Hugging Face transformers on PyTorch?

Run:     python -m experiments.cpu_step_against_peers [--rounds 3] [--steps 5]
Takes:   about 3 minutes on 2 CPU cores; needs the extra `peers`.
Expect:  a ratio near 1.1; the last line is ``ratio: 1.10``.

The same 33.6M Llama (L 8, D 512, N 8, K 4, H 64, F 1536, V 8192, B 4, T 512, float32,
AdamW, gradients clipped at 1, no remat) trains here and there in turn, each round in a
fresh process with all cores, warm-up steps left out. The ratio is of the medians over
all rounds, so that a noisy neighbour disturbs both alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import scaling_lab as lab

B, T, WARMUP = 4, 512, 2
CONFIGS = [
    lab.configure(
        "llama", "33m", "data=1", "cpu:1", batch=B, length=T, steps=100, warmup=0
    )
]
OUT = Path("runs/cpu_step_against_peers")


def ours(steps: int) -> list[float]:
    """Seconds of our steps."""
    import jax
    import numpy as np

    from scaling_lab import train

    program = train.make_program(CONFIGS[0])
    state = program.init()
    draw = np.random.default_rng(0)

    def batch() -> dict:
        tokens = draw.integers(0, CONFIGS[0].model.V, (B, T + 1), np.int32)
        positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
        return {
            "tokens_BT": tokens[:, :-1],
            "targets_BT": tokens[:, 1:],
            "positions_BT": positions,
            "segments_BT": np.zeros_like(positions),
        }

    seconds = []
    for _ in range(WARMUP + steps):
        placed = jax.block_until_ready(program.put(batch()))
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program.step(state, placed))
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP:]


def transformers(steps: int) -> list[float]:
    """Seconds of the peer's steps, with the settings it is fastest with."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c = CONFIGS[0].model
    torch.set_num_threads(os.cpu_count() or 1)
    peer = LlamaConfig(
        vocab_size=c.V,
        hidden_size=c.D,
        intermediate_size=c.F,
        num_hidden_layers=c.L,
        num_attention_heads=c.N,
        num_key_value_heads=c.K,
        head_dim=c.H,
        max_position_embeddings=T,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(peer).float().train()
    count = sum(p.numel() for p in model.parameters())
    assert count == 33_563_136, f"the peer has {count:,} parameters, ours 33,563,136"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    seconds = []
    for _ in range(WARMUP + steps):
        tokens = torch.randint(0, c.V, (B, T))
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP:]


SIDES = {"ours": ours, "transformers": transformers}


def in_process(side: str, steps: int) -> list[float]:
    """Runs one side in a fresh process, both with the same environment."""
    # Huge pages for malloc: without them either side spends a tenth of its time on
    # page faults of the large buffers that every step allocates and frees.
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable,
        "-m",
        __spec__.name,
        "--side",
        side,
        "--steps",
        f"{steps}",
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(SIDES[asked.side](asked.steps)))
        return
    try:
        import torch  # noqa: F401
        import transformers as _  # noqa: F401
    except ImportError:
        raise SystemExit(
            "this experiment trains beside PyTorch: pip install '.[peers]'"
        ) from None
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(asked.rounds):
        for side, found in seconds.items():
            found += in_process(side, asked.steps)
            middle = statistics.median(found[-asked.steps :])
            print(f"round {number + 1}: {side:12} {middle:.3f} s a step", flush=True)
    medians = {side: statistics.median(found) for side, found in seconds.items()}
    ratio = medians["ours"] / medians["transformers"]
    write(seconds, ratio)
    for side, middle in medians.items():
        low, high = min(seconds[side]), max(seconds[side])
        print(f"{side:12} median {middle:.3f} s, {low:.3f} to {high:.3f}")
    print(f"ratio: {ratio:.2f}")


def write(seconds: dict[str, list[float]], ratio: float) -> None:
    """Our side as a record, with the peer's seconds and the ratio beside it."""
    from scaling_lab import measure, record
    from scaling_lab.sweep.provenance import provenance
    from scaling_lab.sweep.run import row

    config = CONFIGS[0]
    clock = measure.spread(seconds["ours"])
    assert clock is not None
    measured = {
        "step_seconds": clock,
        **measure.throughput(config, clock["median"]),
        "peer": {
            "name": "transformers",
            "step_seconds": measure.spread(seconds["transformers"]),
        },
        "ratio": ratio,
    }
    source = provenance(config.xla_flags, config.seed)
    record.append(OUT, row(config, source, measured=measured))


if __name__ == "__main__":
    main()
