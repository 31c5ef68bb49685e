"""What does the lab add around the jitted step: data, transfer, metrics, logging?

Run:     python -m experiments.lab_overhead [--steps 300]
Takes:   about half a minute on one CPU core.
Expect:  under 2 ms a step; the last line is ``overhead: 1.60 ms``, and 2 ms would
         be 2 % of a step of 100 ms.

The loop, the data and the hooks are the real ones; the step alone is replaced by one
that does nothing, so what is left is the lab.
"""

import argparse
import time

import scaling_lab as lab

CONFIGS = [
    lab.configure("llama", "toy", "data=1", "cpu:1", batch=8, length=512, steps=1)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    print(f"overhead: {seconds_per_step(parser.parse_args().steps) * 1e3:.2f} ms")


def seconds_per_step(steps: int) -> float:
    """Wall seconds of the loop around a step that does nothing, start-up left out."""
    import jax

    from scaling_lab import train
    from scaling_lab.config import with_data

    config, dataset = with_data(CONFIGS[0])
    program = train.make_program(config)
    stream = dataset.stream("train", config.batch, config.length, config.seed)
    state, metrics = program.step(program.init(), program.put(stream.batch(0)))
    # New arrays every time, as a step gives, or reading them would cost nothing.
    fresh = jax.jit(lambda batch: metrics)
    idle = program._replace(step=lambda state, batch: (state, fresh(batch)))
    batches = stream.batches()
    losses: list[float] = []

    def on_step(number: int, metrics: dict, _: object) -> None:
        losses.append(float(metrics["loss"]))

    def some(count: int) -> None:
        nonlocal state
        state = train.fit(idle, state, (next(batches) for _ in range(count)), on_step)
        jax.block_until_ready(state)

    some(20)
    start = time.perf_counter()
    some(steps)
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
