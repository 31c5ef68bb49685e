"""Which verb, and which pass, an instruction belongs to: read from its traced name.

A verb is a ``jax.named_scope`` (``ffn/gate``); around it stand the words of JAX's own
transforms. What has no name of its own, a copy or a gather, is its user's, or else
its operand's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from scaling_lab.compile._module import Computation, Instruction, Module

FORWARD, RECOMPUTED, BACKWARD, UPDATE = "forward", "recomputed", "backward", "update"

#: What belongs to no verb: between the blocks, or without any name.
OTHER = "other"

_PARTS = re.compile(r"/(?![^(]*\))")
_WRAPPED = re.compile(r"(?:jvp|transpose|vmap|remat\d*|checkpoint)\((.*)\)$")
_OURS_NOT = {
    *("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation"),
    *("shard_map", "remat", "remat2", "pjit", "core_call", "custom_vjp_call", "scan"),
    *("custom_jvp_call", "custom_vjp_call_jaxpr", "custom_lin", "sharding_constraint"),
    *("psum_invariant", "pallas_call", "named_call", "convert_element_type", "psum"),
}
_ENDS = ("shard_map", "pallas_call", "vmap(", "custom_vjp_call")
_NOISE = re.compile(r"jit\(.*|branch_\d+_fun|.*->.*|region_\d+.*|\.?\d+")
_ARRAY_NAME = re.compile(r"\['(\w+?)_[A-Z]*'\]")


@functools.lru_cache(maxsize=1 << 14)
def verb_of(op_name: str) -> str:
    """The verb of a traced name, or "" where it names none.

    >>> verb_of("jit(step)/transpose(jvp())/while/body/ffn/down/BTF,FD->BTD/dot")
    'ffn/down'
    >>> verb_of("jit(step)/jvp(head)/shard_map/while")
    'head'
    """
    parts = _PARTS.split(alternatives(op_name)[0])
    kept: list[str] = []
    for part in parts[:-1] if len(parts) > 1 else []:
        if kept and part.startswith(_ENDS):
            break  # inside are a mechanism's own names
        inner = part
        while match := _WRAPPED.fullmatch(inner):
            inner = match[1]
        words = inner.split("/") if inner != part else [part]
        kept += [w for w in words if w and w not in _OURS_NOT and not _NOISE.match(w)]
    return "/".join(kept)


def array_of(op_name: str) -> str:
    """The stem of the parameter an entry argument is (``state.params['gate_LDF']``)."""
    match = _ARRAY_NAME.search(op_name)
    return match[1] if match else ""


@functools.lru_cache(maxsize=1 << 14)
def alternatives(op_name: str) -> tuple[str, ...]:
    """The names that the compiler merged into one: ``a/(b/x:c/y)``, or ``a;b``."""
    if ";" in op_name:
        return tuple(op_name.split(";"))
    start = op_name.find("/(")
    if start < 0 or not op_name.endswith(")"):
        return (op_name,)
    parts, depth, word = [], 0, ""
    for letter in op_name[start + 2 : -1]:
        depth += (letter == "(") - (letter == ")")
        if letter == ":" and not depth:
            parts.append(word)
            word = ""
        else:
            word += letter
    return tuple(f"{op_name[: start + 1]}{part}" for part in (*parts, word))


@functools.lru_cache(maxsize=1 << 14)
def pass_of(op_name: str) -> str:
    """Which pass of a training step a traced name is in."""
    # A forward pass inside a backward one, by `jax.checkpoint` or by hand.
    again = op_name.rfind("/jvp(") > op_name.rfind("transpose(") >= 0
    if again or "rematted_computation" in op_name:
        return RECOMPUTED
    if "transpose(" in op_name:
        return BACKWARD
    return FORWARD if "jvp(" in op_name else UPDATE


class Names:
    """Instruction -> the name it was traced under, its own or a neighbour's.

    Its own counts if it names a verb, then that of what is fused in it, then the first
    user's (through a loop's state too), then an operand's, then its own without a verb.
    Of a reduction or a view the operand comes before the user: it is what a verb made.
    """

    def __init__(self, module: Module):
        self._module = module
        self._known: dict[str, dict[str, str]] = {}

    def of(self, computation: Computation) -> dict[str, str]:
        """The names of a computation's instructions, in order."""
        if computation.name not in self._known:
            self._known[computation.name] = self._find(computation)
        return self._known[computation.name]

    def _find(self, computation: Computation) -> dict[str, str]:
        own = {name: self._own(each) for name, each in computation.items()}
        named = {name: text for name, text in own.items() if verb_of(text)}
        late = {
            name
            for name, each in computation.items()
            if each.opcode in _VIEWS or self._reduces(each)
        }
        self._by_users(computation, named, late)
        self._by_operands(computation, named)
        self._by_users(computation, named, set())
        return {name: named.get(name) or own[name] for name in computation}

    def _by_users(
        self, computation: Computation, named: dict[str, str], but: set[str]
    ) -> None:
        for name in reversed(list(computation)):  # what a verb uses is the verb's
            instruction = computation[name]
            if instruction.opcode == "while":
                for operand, text in self._carried(computation, instruction):
                    named.setdefault(operand, text)
            if instruction.opcode in _OPAQUE or name not in named:
                continue
            if len(alternatives(instruction.op_name)) > 1:
                continue  # of several verbs' arrays: it is not known whose is which
            for operand in instruction.operands:
                if operand in but or operand not in computation:
                    continue
                if _may_inherit(computation, operand):
                    named.setdefault(operand, named[name])

    def _by_operands(self, computation: Computation, named: dict[str, str]) -> None:
        for name, instruction in computation.items():
            if name not in named and _may_inherit(computation, name):
                found = [named[o] for o in instruction.operands if o in named]
                if found:
                    named[name] = found[0]

    def _reduces(self, instruction: Instruction) -> bool:
        opcodes = {instruction.opcode}
        if instruction.opcode in _HOLDERS:
            bodies = [self._module.computations[name] for name in instruction.callees]
            opcodes |= {each.opcode for body in bodies for each in body.values()}
        return bool({opcode.removesuffix("-start") for opcode in opcodes} & _SUMS)

    def _own(self, instruction: Instruction) -> str:
        found = instruction.op_name
        if verb_of(found) or instruction.opcode not in _HOLDERS:
            return found
        return self._inside(instruction.callees) or found

    def _inside(self, callees: list[str]) -> str:
        """The name of a fused product, or else the last that has a verb."""
        best = ""
        for callee in callees:
            for instruction in self._module.computations[callee].values():
                if verb_of(instruction.op_name):
                    best = instruction.op_name
                    if instruction.opcode in ("dot", "convolution"):
                        return best
        return best

    def _carried(
        self, computation: Computation, loop: Instruction
    ) -> Iterator[tuple[str, str]]:
        """What a loop's state is made of, and the name of its use in the body."""
        state = computation.get(loop.operands[0])
        if state is None or state.opcode != "tuple":
            return
        body = self._module.computations[loop.attribute(r"\bbody=%?([\w.\-]+)")]
        names = self.of(body)
        for name, each in body.items():
            if each.opcode == "get-tuple-element" and verb_of(names[name]):
                if body[each.operands[0]].opcode == "parameter":
                    place = int(each.attribute(r"\bindex=(\d+)"))
                    if _may_inherit(computation, state.operands[place]):
                        yield state.operands[place], names[name]


_VIEWS = {"bitcast", "get-tuple-element"}
_SUMS = {"all-reduce", "reduce-scatter"}
_HOLDERS = {"fusion", "call-start", "async-start"}
_OPAQUE = {"while", "conditional", "tuple", "call", "parameter", "constant"}


def _may_inherit(computation: Computation, name: str) -> bool:
    return computation[name].opcode not in _OPAQUE
