"""In a tick no loop's collectives run beside others, where devices are simulated."""

import pytest

from contracts.training import run_of
from scaling_lab import train
from scaling_lab.compile import hlo
from scaling_lab.compile._module import Module

pytestmark = pytest.mark.usefixtures("quick_compiles")


def side_by_side(text):
    """Loops with collectives and later collectives that wait for nothing of them."""
    module = Module(text)
    meets = {name: None for name in module.computations}

    def has(name):
        """Whether devices meet in a computation."""
        if meets[name] is None:
            ops = module.computations[name].values()
            meets[name] = any(of(op) for op in ops)
        return meets[name]

    def of(op):
        return op.opcode in hlo.KINDS or any(map(has, op.callees))

    for ops in module.computations.values():
        before, loops = {}, []
        for name, op in ops.items():
            before[name] = set(op.operands).union(
                *(before[operand] for operand in op.operands if operand in before)
            )
            if not of(op):
                continue
            for loop in loops:
                if loop not in before[name]:
                    yield ops[loop].op_name, op.op_name
            if op.opcode in ("while", "conditional"):
                loops.append(name)


@pytest.mark.parametrize(
    ("family", "layout", "fields"),
    [
        ("llama", "data=2,stage=2,context=2+ring+zero_bubble", {"precision": "float8"}),
        ("qwen3_moe", "stage=2,expert=2,fsdp=2+1f1b", {"precision": "int8"}),
    ],
)
def test_loops_of_a_tick_are_in_an_order(family, layout, fields, tiny):
    model = tiny(family, L=4)
    config = run_of(model, layout, batch=16, accumulate=4, **fields)
    program = train.make_program(config)
    lowered = program.step.lower(*program.abstract_arguments())
    assert not list(side_by_side(lowered.compile().as_text()))
