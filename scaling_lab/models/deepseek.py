"""DeepSeek-V2 and V3 (DeepSeek-AI 2024): latent attention, fine-grained experts.

Keys and values are made from one narrow latent (V2, section 2.1); a rotary part of the
key is shared by all heads. Leading layers are dense, the others have shared and routed
experts. V3 chooses by sigmoids, a bias that load alone moves, and groups (V3, section
2.1.2), and may learn from the token after next (section 2.2). The stretching of rotary
wavelengths after pretraining (YaRN) is left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scaling_lab.models.deepseek_blocks import DenseBlock, ExpertBlock, Further
from scaling_lab.models.llama import Ends
from scaling_lab.models.llama import head as head
from scaling_lab.models.ops import (
    EVERYTHING,
    Output,
    parameters,
    rms_norm,
    rope_tables,
    segment,
    stacked,
)
from scaling_lab.parallel.sight import Sight
from scaling_lab.parallel.verbs import Routing, Verbs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes by letter (see `dims.ALPHABET`).

    Attributes:
      H, P: the plain and the rotary part of a query and key; U of a value.
      R: of the latent of keys and values. Q: of queries; ``None`` where there is none.
      F: of a dense layer. expert_width: of one expert. shared_width: of the shared
        ones together.
      dense: leading layers without experts.
      biased: whether load moves a bias of the router.
      further: weight of the loss of the token after next; 0 where it is not learnt.
    """

    L: int
    D: int
    N: int
    K: int
    H: int
    P: int
    U: int
    R: int
    F: int
    V: int
    E: int
    expert_width: int
    shared_width: int
    routing: Routing
    Q: int | None = None
    dense: int = 1
    biased: bool = False
    further: float = 0.0
    tied: bool = False
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    length: int = 4096
    mask: Sight = EVERYTHING

    @property
    def depths(self) -> tuple[int, ...]:
        """Dense layers, and those with experts."""
        return (self.dense, self.L - self.dense)

    @property
    def cached_width(self) -> int:
        """Of a head's key and, with zeros, of its value."""
        return self.H + self.P

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Sizes of dims that have several (`models.widths`)."""
        inner = (self.F, self.expert_width, self.shared_width)
        # The layer of the token after next reads two hidden states.
        further = bool(self.further)
        return {
            "L": (*self.depths, *(1,) * further),
            "F": (*inner, *(self.D,) * further),
        }


_V2_ROUTING = Routing(top_k=6, normalise=False, balance=0.001)
_V3_ROUTING = Routing(
    top_k=8, gate="sigmoid", scaling=2.5, groups=8, top_groups=4, balance=0.0001
)
_V3 = Config(
    L=61,
    D=7168,
    N=128,
    K=128,
    H=128,
    P=64,
    U=128,
    R=512,
    F=18_432,
    V=129_280,
    E=256,
    expert_width=2048,
    shared_width=2048,
    routing=_V3_ROUTING,
    Q=1536,
    dense=3,
    biased=True,
)

#: The config.json of deepseek-ai/DeepSeek-V2-Lite and deepseek-ai/DeepSeek-V3, the
#: latter without and with the module that predicts the token after next.
SIZES: dict[str, Config] = {
    "toy": Config(
        L=4,
        D=128,
        N=8,
        K=8,
        H=16,
        P=8,
        U=16,
        R=32,
        F=384,
        V=256,
        E=16,
        expert_width=64,
        shared_width=64,
        routing=dataclasses.replace(_V3_ROUTING, top_k=3, groups=4, top_groups=2),
        Q=48,
        biased=True,
        further=0.3,
        length=1024,
    ),
    "v2-lite": Config(
        L=27,
        D=2048,
        N=16,
        K=16,
        H=128,
        P=64,
        U=128,
        R=512,
        F=10_944,
        V=102_400,
        E=64,
        expert_width=1408,
        shared_width=2816,
        routing=_V2_ROUTING,
    ),
    "v3": _V3,
    "v3-mtp": dataclasses.replace(_V3, further=0.3),
}


def init(config: Config, key: Array) -> dict[str, Any]:
    """Parameters in float32; the same numbers under every layout."""
    ends, dense, layers, further, module = jax.random.split(key, 5)
    made = {
        **parameters(Ends(config, nnx.Rngs(ends))),
        "layers_dense": stacked(DenseBlock, config, dense, config.dense),
        "layers": stacked(ExpertBlock, config, layers, config.L - config.dense),
    }
    if config.further:
        made |= parameters(Further(config, nnx.Rngs(module)))
        made["layers_further"] = stacked(ExpertBlock, config, further, 1)
    return made


def hidden(
    config: Config, params: Any, batch: Any, place: Verbs, cache: Any = None
) -> Output:
    """Tokens to the normed hidden state under the head."""
    x_BTD = place.take(params["embed_VD"], batch["tokens_BT"], name="embed")
    tables = rope_tables(batch["positions_BT"], config.P, config.rope_base, None)
    layers = [
        segment(DenseBlock, config, params["layers_dense"]),
        segment(ExpertBlock, config, params["layers"]),
    ]
    x_BTD, aux, cache = place.stack(layers, x_BTD, {**batch, **tables}, cache)
    hidden_BTD = rms_norm(
        place,
        x_BTD,
        params["final_norm_D"],
        epsilon=config.norm_epsilon,
        name="final_norm",
    )
    return Output(hidden_BTD, aux, cache)


def further(
    config: Config, params: Any, batch: Any, place: Verbs, output: Output
) -> tuple[Output, Array, float] | None:
    """The hidden state that is to know the token after next, that token, the weight.

    It is made from a hidden state and the embedding of the next token by one more
    layer with experts (V3, equations 21 to 23). ``None`` where it is not learnt.
    """
    if not config.further:
        return None
    targets_BT = batch["targets_BT"]
    counted_BT = targets_BT >= 0
    token_BTD = place.take(
        params["embed_VD"],
        jnp.where(counted_BT, targets_BT, 0),
        name="further/embed",
    )
    read_BTD = [
        place.einsum(
            "BTD,DF->BTF",
            _normed(config, place, params, part_BTD, f"further_{stem}_norm"),
            params[f"further_{stem}_DF"],
            name=f"further/further_{stem}",
        )
        for stem, part_BTD in (("state", output.hidden_BTD), ("token", token_BTD))
    ]
    tables = rope_tables(batch["positions_BT"], config.P, config.rope_base, None)
    layer = segment(ExpertBlock, config, params["layers_further"])
    x_BTD, aux, _ = place.stack([layer], read_BTD[0] + read_BTD[1], {**batch, **tables})
    hidden_BTD = _normed(config, place, params, x_BTD, "further_final_norm")
    after_BT = jnp.where(counted_BT, _following(targets_BT, batch), -1)
    return Output(hidden_BTD, aux, None), after_BT, config.further


def _following(targets_BT: Array, batch: Any) -> Array:
    """The target of the token behind each, in whatever order a row's tokens stand.

    A divided sequence is not in its own order, but positions in documents tell it.
    """
    length = targets_BT.shape[1]
    order_BT = jnp.argsort(batch["segments_BT"] * length + batch["positions_BT"], 1)
    row_BT = jnp.take_along_axis(targets_BT, order_BT, 1)
    row_BT = jnp.pad(row_BT[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    return jnp.take_along_axis(row_BT, jnp.argsort(order_BT, 1), 1)


def _normed(c: Config, place: Verbs, params: Any, x_BTD: Array, stem: str) -> Array:
    scale_D = params[f"{stem}_D"]
    name = f"further/{stem}"
    return rms_norm(place, x_BTD, scale_D, epsilon=c.norm_epsilon, name=name)


def parameter_count(c: Config) -> int:
    """The closed form, to hold against what `init` makes."""
    wide = c.N * (c.H + c.P)
    query = c.D * wide if c.Q is None else c.Q * (c.D + wide + 1)
    latent = c.D * (c.R + c.P) + c.R + c.R * c.N * (c.H + c.U)
    attention = query + latent + c.N * c.U * c.D
    one = 3 * c.D * c.expert_width
    routed = c.E * (one + c.D + c.biased) + 3 * c.D * c.shared_width
    ends = (1 if c.tied else 2) * c.V * c.D + c.D
    sparse = c.L - c.dense
    count = c.L * (attention + 2 * c.D) + c.dense * 3 * c.D * c.F + sparse * routed
    if c.further:
        count += attention + 2 * c.D + routed + 2 * c.D * c.D + 3 * c.D
    return count + ends
