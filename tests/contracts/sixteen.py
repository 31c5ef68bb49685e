"""Four axes on sixteen simulated devices, trained; started by `test_covering`.

Each is a mesh that ``scaling-lab plan`` proposes, at larger sizes, for Llama 70B and
405B, Mixtral 8x22B or DeepSeek V3.
"""

import sys

import jax
from conftest import packed_batch, tiny_model

from contracts.covering import BATCH, Case
from contracts.training import Trained, same
from scaling_lab.compile import cpu

CASES = [
    Case("llama", "stage=2,fsdp=2,context=2,tensor=2+sequence+ring", "full"),
    Case("llama", "data=2,fsdp=2,context=2,tensor=2+sequence+zero2", accumulate=1),
    Case("mixtral", "stage=2,expert=2,fsdp=2,tensor=2+sequence"),
    Case("mixtral", "data=2,stage=2,expert=2,fsdp=2+zero2", "full"),
]


def main():
    cpu.simulate(16)
    jax.config.update("jax_disable_most_optimizations", True)
    batches = [packed_batch(BATCH, seed=seed) for seed in range(3)]
    measures = {}
    for case in CASES:
        config = case.alone(tiny_model)
        if config not in measures:
            measures[config] = Trained(config, batches)
        same(Trained(case.config(tiny_model), batches), measures[config])
        print(case.layout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
