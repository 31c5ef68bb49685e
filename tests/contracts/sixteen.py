"""Three and four axes on sixteen simulated devices; started by `test_covering`.

What ``scaling-lab plan`` proposes for sixteen chips, trained as it says, of a small
model of the family.
"""

import functools
import re
import sys

import jax
from conftest import packed_batch, tiny_model

from contracts.cases import BATCH, Case
from contracts.training import Trained, same
from scaling_lab import plan
from scaling_lab.compile import cpu

TOP = "top=2,gate=softmax"
#: Axes, the words of a plan, and how tokens find experts.
ASKED = [
    (3, ("gemma3", "27b", "h100:2x8"), 32768, "none"),
    (4, ("llama", "8b", "tpu-v5p:2x2x4"), 8192, "none"),
    (4, ("llama", "70b", "tpu-v5p:2x2x4"), 8192, "none"),
    (4, ("mixtral", "8x7b", "tpu-v5p:2x2x4"), 8192, TOP),
    (4, ("qwen3_moe", "30b-a3b", "h100:2x8"), 8192, TOP),
]


@functools.cache
def cases():
    """Of every question the fastest of so many axes that is not yet there."""
    found = []
    for axes, words, length, routing in ASKED:
        answer = plan.plan(plan.ask(*words, batch_tokens="1M", length=length), 400)
        proposed = [
            _case(words[0], choice, routing)
            for choice in answer.choices
            if choice.trained and choice.layout.partition("+")[0].count("=") == axes
        ]
        known = [case.layout for case in found]
        found.append(next(case for case in proposed if case.layout not in known))
    return found


def _case(family, choice, routing):
    """A choice at a small model's size: of its 4 layers a stage has two chunks."""
    layout = re.sub(r"interleaved=\d+", "interleaved=2", choice.layout)
    parts = min(choice.microbatches, 4)
    return Case(family, layout, choice.remat, accumulate=parts, routing=routing)


def main():
    cpu.simulate(16)
    jax.config.update("jax_disable_most_optimizations", True)
    batches = [packed_batch(BATCH, seed=seed) for seed in range(3)]
    for case in cases():
        wanted = Trained(case.measure().alone(tiny_model), batches)
        same(Trained(case.config(tiny_model), batches), wanted)
        print(case.layout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
