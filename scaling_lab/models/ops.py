"""What two families truly share: norms, rotary positions, layers as data."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scaling_lab import dims
from scaling_lab.parallel.experts.products import Product
from scaling_lab.parallel.masks import Batch, Mask
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Segment, Verbs

Array = jax.Array

#: What a layer sees of its document where nothing else is said: all that is before.
EVERYTHING = Sight()


class Output(NamedTuple):
    """What `hidden` returns: the last hidden state, per-layer extras, the KV cache."""

    hidden_BTD: Array
    aux: Any
    cache: Any


def rms_norm(
    place: Verbs, x_BTD: Array, scale_D: Any, *, epsilon: float, name: str
) -> Array:
    """Root-mean-square norm (Zhang and Sennrich 2019), statistics in float32."""
    wide_BTD = x_BTD.astype(jnp.float32)
    power_BT1 = jnp.mean(jnp.square(wide_BTD), -1, keepdims=True)
    normed_BTD = (wide_BTD * jax.lax.rsqrt(power_BT1 + epsilon)).astype(x_BTD.dtype)
    return place.einsum("BTD,D->BTD", normed_BTD, scale_D, name=name)


def head_norm(
    place: Verbs, x_BTNH: Array, scale_H: Any, *, epsilon: float, name: str, heads: str
) -> Array:
    """`rms_norm` of every head by itself (Dehghani et al. 2023, section 2).

    Args:
      heads: the letter of the heads' dim, N or K.
    """
    wide_BTNH = x_BTNH.astype(jnp.float32)
    power_BTN1 = jnp.mean(jnp.square(wide_BTNH), -1, keepdims=True)
    normed_BTNH = (wide_BTNH * jax.lax.rsqrt(power_BTN1 + epsilon)).astype(x_BTNH.dtype)
    return place.einsum(f"BT{heads}H,H->BT{heads}H", normed_BTNH, scale_H, name=name)


def layer_norm(
    place: Verbs, x_BTD: Array, scale_D: Any, bias_D: Any, *, epsilon: float, name: str
) -> Array:
    """Layer norm (Ba et al. 2016), statistics in float32."""
    wide_BTD = x_BTD.astype(jnp.float32)
    centred_BTD = wide_BTD - jnp.mean(wide_BTD, -1, keepdims=True)
    power_BT1 = jnp.mean(jnp.square(centred_BTD), -1, keepdims=True)
    normed_BTD = (centred_BTD * jax.lax.rsqrt(power_BT1 + epsilon)).astype(x_BTD.dtype)
    return place.einsum("BTD,D->BTD", normed_BTD, scale_D, name=name, bias=bias_D)


@jax.custom_vjp
def gated_silu(gate_BTF: Array, up_BTF: Array) -> Array:
    """silu(gate) · up (SwiGLU, Shazeer 2020), its gradient made in one pass.

    Fused into the three products that read them, the gradients of both factors would
    be made again for every tile of each: more work than the memory they take.
    """
    return jax.nn.silu(gate_BTF) * up_BTF


def _gated_silu_forward(gate_BTF, up_BTF):
    return gated_silu(gate_BTF, up_BTF), (gate_BTF, up_BTF)


def _gated_silu_backward(factors, d_BTF):
    gate_BTF, up_BTF, wide_BTF = (a.astype(jnp.float32) for a in (*factors, d_BTF))
    sigmoid_BTF = jax.nn.sigmoid(gate_BTF)
    silu_BTF = gate_BTF * sigmoid_BTF
    slope_BTF = sigmoid_BTF + silu_BTF * (1 - sigmoid_BTF)
    d_gate_BTF = (wide_BTF * up_BTF * slope_BTF).astype(factors[0].dtype)
    d_up_BTF = (wide_BTF * silu_BTF).astype(factors[1].dtype)
    return jax.lax.optimization_barrier((d_gate_BTF, d_up_BTF))


gated_silu.defvjp(_gated_silu_forward, _gated_silu_backward)


def swiglu(product: Product, h_CD: Array) -> Array:
    """One expert: a gated feed-forward of rows (`verbs.Verbs.experts`)."""
    gate_CF, up_CF = product(h_CD, "gate_EDF"), product(h_CD, "up_EDF")
    return product(gated_silu(gate_CF, up_CF), "down_EFD")


def normal(key: Array, shape: tuple[int, ...], deviation: float = 0.02) -> nnx.Param:
    """A float32 weight from a normal distribution cut at three deviations."""
    draw = jax.random.truncated_normal(key, -3.0, 3.0, shape, jnp.float32)
    return nnx.Param(deviation * draw)


def constant(value: float, *shape: int) -> nnx.Param:
    """A float32 parameter that starts at one value."""
    return nnx.Param(jnp.full(shape, value, jnp.float32))


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of rotary wavelengths for long contexts."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


def rope_tables(
    positions_BT: Array,
    width: int,
    base: float,
    scaling: RopeScaling | None,
    prefix: str = "",
) -> dict[str, Array]:
    """Sines and cosines of rotary positions (Su et al. 2021), P = width / 2.

    Args:
      prefix: of the tables' names, where a model has several.
    """
    frequency_P = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling is not None:
        wavelength_P = 2 * math.pi / frequency_P
        turns_P = scaling.original_length / wavelength_P
        blend_P = (turns_P - scaling.low) / (scaling.high - scaling.low)
        blend_P = jnp.clip(blend_P, 0.0, 1.0)
        frequency_P *= blend_P + (1 - blend_P) / scaling.factor
    angle_BTP = positions_BT.astype(jnp.float32)[..., None] * frequency_P[None, None]
    return {
        f"{prefix}sine_BTP": jnp.sin(angle_BTP),
        f"{prefix}cosine_BTP": jnp.cos(angle_BTP),
    }


def rotate(x_BTNH: Array, per_batch: Batch, prefix: str = "") -> Array:
    """Turns pairs (i, i + H/2) of a head by their position's angle.

    Args:
      prefix: of the names of `rope_tables` in `per_batch`.

    In bfloat16 the pairs change places by a product with a signed permutation, which
    is exact: halves of a head are narrower than an accelerator's lanes, and cutting
    them apart costs more passes over the array than the matrix unit does.
    """
    wide_BTNH = x_BTNH.astype(jnp.float32)
    sine_BT1H, cosine_BT1H = (
        jnp.concatenate([per_batch[key][:, :, None]] * 2, -1)
        for key in (f"{prefix}sine_BTP", f"{prefix}cosine_BTP")
    )
    if x_BTNH.dtype == jnp.bfloat16:
        partner_BTNH = jnp.einsum(
            "BTNH,HP->BTNP",
            x_BTNH,
            _partner(x_BTNH.shape[-1]).astype(x_BTNH.dtype),
            preferred_element_type=jnp.float32,
        )
    else:
        first_BTNP, second_BTNP = jnp.split(wide_BTNH, 2, -1)
        partner_BTNH = jnp.concatenate([-second_BTNP, first_BTNP], -1)
    turned_BTNH = wide_BTNH * cosine_BT1H + partner_BTNH * sine_BT1H
    return turned_BTNH.astype(x_BTNH.dtype)


def _partner(width: int) -> np.ndarray:
    """The matrix that puts -x[i + H/2] at i, and x[i] at i + H/2."""
    half = np.eye(width // 2, dtype=np.float32)
    return np.block([[0 * half, half], [-half, 0 * half]])


# Keys and values of earlier positions.


def empty_cache(config: Any, batch: int, length: int, dtype: Any) -> list[dict]:
    """A KV cache: of every segment room for `length` positions, none written yet.

    A config with unlike layers lists its segments' depths as ``depths``, and one whose
    cached heads are wider than H says so as ``cached_width``.
    """
    width = getattr(config, "cached_width", config.H)
    sight, firsts = getattr(config, "mask", EVERYTHING), {}
    if sight.top is not None:  # whole blocks, and of each its first query
        blocks = -(-length // sight.block)
        length = blocks * sight.block
        firsts["first_LBSNH"] = (batch, blocks, config.N, width)
    one = (batch, length, config.K, width)
    arrays = {"key_LBSKH": one, "value_LBSKH": one, **firsts}
    return [
        {
            "written_L": jnp.zeros((depth,), jnp.int32),
            **{
                name: jnp.zeros((depth, *shape), dtype)
                for name, shape in arrays.items()
            },
        }
        for depth in getattr(config, "depths", (config.L,))
    ]


def remember(
    cache: Any,
    k_BTKH: Array,
    v_BTKH: Array,
    per_batch: Batch,
    sight: Sight = EVERYTHING,
) -> tuple[Array, Array, Mask, Any]:
    """What attention should see, with and without a cache.

    Args:
      sight: what of it a query sees; by default all that is before it.

    Returns:
      keys, values, the mask over them, and the cache with them written.
    """
    if cache is None:
        return k_BTKH, v_BTKH, sight.over(per_batch), None
    at = cache["written_L"]
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    key_BSKH = write(cache["key_LBSKH"], k_BTKH, at)
    value_BSKH = write(cache["value_LBSKH"], v_BTKH, at)
    batch, slots = key_BSKH.shape[:2]
    slots_BS = jnp.broadcast_to(jnp.arange(slots)[None], (batch, slots))
    written = at + k_BTKH.shape[1]
    mask = sight.after(per_batch["positions_BT"], slots_BS, written)
    after = {
        **cache,
        "key_LBSKH": key_BSKH,
        "value_LBSKH": value_BSKH,
        "written_L": written,
    }
    return key_BSKH, value_BSKH, mask, after


# Modules as data: outside a family's file there are only plain dicts.


def parameters(module: nnx.Module) -> dict[str, Any]:
    """The module's parameters as a plain dict, after checking names against shapes."""
    flat = nnx.to_pure_dict(nnx.split(module, nnx.Param)[1])
    for name, array in flat.items():
        dims.check(name, array.shape)
    return flat


def stacked(
    block: Callable[..., nnx.Module], config: Any, key: Array, depth: int | None = None
) -> dict[str, Any]:
    """Parameters of like layers, each from its own key, stacked with a leading L.

    Args:
      depth: how many; default all L of the config.
    """

    def one(key):
        return parameters(block(config, nnx.Rngs(key)))

    layers = jax.vmap(one)(jax.random.split(key, depth or config.L))
    return {dims.stacked(name): array for name, array in layers.items()}


def segment(
    block: Callable[..., nnx.Module], config: Any, params: Mapping[str, Any]
) -> Segment:
    """L like layers for `place.stack`. The block closes over a config and no arrays."""
    return Segment(functools.partial(_run, block, config), params)


def _run(block, config, place, params, x_BTD, per_batch, cache):
    layer = nnx.eval_shape(lambda: block(config, nnx.Rngs(0)))
    nnx.update(layer, dict(params))
    return layer(x_BTD, per_batch, place, cache)
