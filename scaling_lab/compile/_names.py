"""Which verb, and which pass, an instruction belongs to: read from its traced name.

A verb is a ``jax.named_scope`` (``ffn/gate``); around it stand the words of JAX's own
transforms. What has no name of its own, a copy or a gather, is its user's, or else
its operand's.
"""

from __future__ import annotations

import functools
import re

from scaling_lab.compile._module import Computation, Module

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
    parts = _PARTS.split(op_name.partition(";")[0])
    kept: list[str] = []
    for part in parts[:-1] if len(parts) > 1 else []:
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
def pass_of(op_name: str) -> str:
    """Which pass of a training step a traced name is in."""
    if "rematted_computation" in op_name:
        return RECOMPUTED
    if "transpose(" in op_name:
        return BACKWARD
    return FORWARD if "jvp(" in op_name else UPDATE


def op_names(module: Module, computation: Computation) -> dict[str, str]:
    """Instruction -> the name it was traced under, its own or a neighbour's.

    Its own counts if it names a verb, then that of what is fused in it, then the first
    user's, then an operand's, then its own without a verb.
    """
    own: dict[str, str] = {}
    for name, instruction in computation.items():
        found = instruction.op_name
        if not verb_of(found) and instruction.opcode == "fusion":
            found = _inside(module, instruction.callees) or found
        own[name] = found
    named = {name: text for name, text in own.items() if verb_of(text)}
    order = list(computation)
    for name in reversed(order):  # what a verb uses is the verb's
        if computation[name].opcode in _OPAQUE or name not in named:
            continue
        for operand in computation[name].operands:
            if computation.get(operand) and _may_inherit(computation, operand):
                named.setdefault(operand, named[name])
    for name in order:
        if name in named or not _may_inherit(computation, name):
            continue
        for operand in computation[name].operands:
            if operand in named:
                named[name] = named[operand]
                break
    return {name: named.get(name) or own[name] for name in order}


_OPAQUE = {"while", "conditional", "tuple", "call", "parameter", "constant"}


def _may_inherit(computation: Computation, name: str) -> bool:
    return computation[name].opcode not in _OPAQUE


def _inside(module: Module, callees: list[str]) -> str:
    """The name of a fused product, or else the last that has a verb."""
    best = ""
    for callee in callees:
        for instruction in module.computations[callee].values():
            if verb_of(instruction.op_name):
                best = instruction.op_name
                if instruction.opcode in ("dot", "convolution"):
                    return best
    return best
