"""What does saying a block in verbs add to what is compiled?

Run:     python -m experiments.place_overhead [--json]
Takes:   about half a minute of one CPU core, on eight simulated devices.
Expect:  forward, the same operations as of the block with its constraints written by
         hand, kind by kind; with gradients fewer, since they are reduced straight to
         where they rest, where by hand the whole sum is made and then cut.

One layer of Llama without rotation, on ``fsdp=4,tensor=2``. By hand it is plain JAX
that knows its mesh: weights are constrained to where they are used, results to where
they live. Counted are the operations of the optimised module, all computations in it,
without parameters, constants, tuples and bitcasts, which do nothing.
"""

import argparse
import collections
import functools
import json
import re
from typing import Any

import scaling_lab as lab

CONFIGS = [
    lab.configure(
        "llama", "toy", "fsdp=4,tensor=2", "cpu:8", layers=1, batch=8, length=64
    )
]
#: What stands in a module and does nothing.
NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
WEIGHTS = (
    *("attention_norm_D", "query_DNH", "key_DKH", "value_DKH", "out_NHD"),
    *("ffn_norm_D", "gate_DF", "up_DF", "down_FD"),
)


def main() -> None:
    from scaling_lab.compile import cpu

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    cpu.simulate(8)
    found = answer(CONFIGS[0])
    print(json.dumps(found, indent=1) if given.json else text(found))


def answer(config: lab.RunConfig) -> dict[str, Any]:
    """Operations of both blocks, forward and with gradients, by what they do."""
    import jax

    from scaling_lab.layouts import Placement, make_mesh

    place = Placement(config.layout, make_mesh(config.layout))
    arguments = shapes(config, place)
    there = jax.tree.map(lambda leaf: leaf.sharding, arguments)
    found: dict[str, Any] = {"forward": {}, "forward and backward": {}}
    for way, block in (("verbs", in_verbs), ("hand", by_hand)):
        forward = functools.partial(block, place)

        def both(weights: Any, x_BTD: Any, forward: Any = forward) -> Any:
            out_BTD, back = jax.vjp(forward, weights, x_BTD)
            return back(out_BTD)

        for what, step, out in (
            ("forward", forward, there[1]),
            ("forward and backward", both, there),
        ):
            compiled = jax.jit(step, out_shardings=out).lower(*arguments).compile()
            found[what][way] = operations(compiled.as_text())
    return found


def shapes(config: lab.RunConfig, place: Any) -> tuple[dict[str, Any], Any]:
    """Weights of a layer as they rest, and activations as they live."""
    import jax
    import jax.numpy as jnp

    from scaling_lab import dims

    size = dims.sizes(config.model) | {"B": config.batch, "T": config.length}

    def one(kind: str, name: str) -> Any:
        letters = dims.letters(name)
        shape = tuple(size[letter] for letter in letters)
        sharding = place.sharding(kind, letters, name)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    weights = {name: one("params", name) for name in WEIGHTS}
    return weights, one("acts", "x_BTD")


def in_verbs(place: Any, weights: Any, x_BTD: Any) -> Any:
    """A layer as a family says it."""
    import jax

    def of(equation: str, array: Any, name: str) -> Any:
        stem = name.rpartition("/")[2]
        (weight,) = (w for key, w in weights.items() if key.startswith(f"{stem}_"))
        return place.einsum(equation, array, weight, name=name)

    h_BTD = of("BTD,D->BTD", normed(x_BTD), "attention/attention_norm")
    q_BTNH = of("BTD,DNH->BTNH", h_BTD, "attention/query")
    k_BSKH = of("BTD,DKH->BTKH", h_BTD, "attention/key")
    v_BSKH = of("BTD,DKH->BTKH", h_BTD, "attention/value")
    o_BTNH = place.attend(
        q_BTNH, k_BSKH, v_BSKH, mask_of(x_BTD), name="attention/attend"
    )
    x_BTD = x_BTD + of("BTNH,NHD->BTD", o_BTNH, "attention/out")
    h_BTD = of("BTD,D->BTD", normed(x_BTD), "ffn/ffn_norm")
    g_BTF = of("BTD,DF->BTF", h_BTD, "ffn/gate")
    u_BTF = of("BTD,DF->BTF", h_BTD, "ffn/up")
    return x_BTD + of("BTF,FD->BTD", jax.nn.silu(g_BTF) * u_BTF, "ffn/down")


def by_hand(place: Any, weights: Any, x_BTD: Any) -> Any:
    """The same in plain JAX: batch over fsdp; heads and width over tensor."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from scaling_lab.parallel import attention

    def at(array: Any, *spec: Any) -> Any:
        sharding = NamedSharding(place.mesh, PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(array, sharding)

    def dot(equation: str, x: Any, weight: Any) -> Any:
        return jnp.einsum(equation, x, weight, precision=jax.lax.Precision.HIGHEST)

    w, heads = weights, ("fsdp", None, "tensor", None)
    h_BTD = at(normed(x_BTD) * at(w["attention_norm_D"], None)[None, None], "fsdp")
    query_DNH = at(w["query_DNH"], None, "tensor", None)
    key_DKH = at(w["key_DKH"], None, "tensor", None)
    value_DKH = at(w["value_DKH"], None, "tensor", None)
    q_BTNH = at(dot("BTD,DNH->BTNH", h_BTD, query_DNH), *heads)
    k_BSKH = at(dot("BTD,DKH->BTKH", h_BTD, key_DKH), *heads)
    v_BSKH = at(dot("BTD,DKH->BTKH", h_BTD, value_DKH), *heads)
    arrays, rows = (q_BTNH, k_BSKH, v_BSKH), ("fsdp", None)
    o_BTNH = attention.by_heads(
        attention.dense, arrays, mask_of(x_BTD), place.mesh, rows, ("tensor", "tensor")
    )
    out_NHD = at(w["out_NHD"], "tensor", None, None)
    x_BTD = x_BTD + at(dot("BTNH,NHD->BTD", o_BTNH, out_NHD), "fsdp")
    h_BTD = at(normed(x_BTD) * at(w["ffn_norm_D"], None)[None, None], "fsdp")
    g_BTF = at(dot("BTD,DF->BTF", h_BTD, at(w["gate_DF"], None, "tensor")), *heads[:3])
    u_BTF = at(dot("BTD,DF->BTF", h_BTD, at(w["up_DF"], None, "tensor")), *heads[:3])
    down_FD = at(w["down_FD"], "tensor", None)
    return x_BTD + at(dot("BTF,FD->BTD", jax.nn.silu(g_BTF) * u_BTF, down_FD), "fsdp")


def normed(x_BTD: Any) -> Any:
    """Of unit root mean square."""
    import jax
    import jax.numpy as jnp

    power_BT1 = jnp.mean(jnp.square(x_BTD), -1, keepdims=True)
    return x_BTD * jax.lax.rsqrt(power_BT1 + 1e-5)


def mask_of(x_BTD: Any) -> Any:
    """Causal, one document a row."""
    import jax.numpy as jnp

    from scaling_lab.parallel import masks

    at_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1])[None], x_BTD.shape[:2])
    batch = {"positions_BT": at_BT, "segments_BT": jnp.zeros_like(at_BT)}
    return masks.causal_mask(batch)


def operations(module: str) -> dict[str, int]:
    """How many operations of each kind stand in a module's text."""
    kinds = re.findall(
        r"^\s+(?:ROOT )?%?[\w.-]+ = .*? ([a-z][a-z0-9-]*)\(", module, re.M
    )
    counted = collections.Counter(kind for kind in kinds if kind not in NOTHING)
    return dict(sorted(counted.items()))


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    lines = []
    for what, ways in found.items():
        verbs, hand = ways["verbs"], ways["hand"]
        lines.append(f"{what:24} {'verbs':>6} {'hand':>6}")
        for kind in sorted({*verbs, *hand}):
            lines.append(f"  {kind:22} {verbs.get(kind, 0):6} {hand.get(kind, 0):6}")
        lines.append(f"  {'all':22} {sum(verbs.values()):6} {sum(hand.values()):6}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
