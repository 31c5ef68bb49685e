"""Predicted bytes of a device: against published equations, against `explain`, and
against the residuals that JAX says it keeps."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

from scaling_lab import cost, dims, layouts, models
from scaling_lab.config import RunConfig, configure
from scaling_lab.cost import activations
from scaling_lab.cost.memory import Memory, in_flight, memory
from scaling_lab.cost.points import REMATS, SCHEDULES, STACKS, Points, names
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.layouts.placement import Placement
from scaling_lab.parallel import keeping
from scaling_lab.plan import columns, shape

GIB = 2**30

#: One H100 and one layer of nothing; what a test is about is given by the test.
PLAIN = dict.fromkeys(names(), 1) | {
    "n_experts": 0,
    "top_k": 0,
    "expert_d_ff": 0,
    "shared_d_ff": 0,
    "dense_layers": 0,
    "window": 0,
    "window_share": 0,
    "params": np.nan,
    "active_params": np.nan,
    "attention_params": np.nan,
    "zero_stage": 0,
    "overlap": 0,
    "schedule": SCHEDULES.index("1f1b"),
    "stack": STACKS.index("xla"),
    "remat": REMATS.index("none"),
    "precision": 0,
    "offload": 0,
    "lockstep": 0,
    "recompute": 0,
    "near_again": 0,
    "param_bytes": 4,
    "grad_bytes": 4,
    "optimizer_bytes": 8,
    "chip": "h100",
}


def points(**columns_):
    return Points(**(PLAIN | columns_))


# --- Korthikanti et al. 2022, table 3 and equations 1 to 5


MEGATRON = {
    # layers, width, heads, tensor, stages, pieces, sequences of a microbatch
    "22B": (48, 6144, 64, 8, 1, 1, 4),
    "175B": (96, 12288, 96, 8, 8, 3, 1),
    "530B": (105, 20480, 128, 8, 35, 3, 1),
    "1T": (128, 25600, 160, 8, 64, 1, 1),
}


def megatron(name, **changes):
    layers, width, heads, tensor, stages, pieces, sequences = MEGATRON[name]
    schedule = "interleaved" if pieces > 1 else "1f1b"
    fields = {
        "layers": layers,
        "d_model": width,
        "n_heads": heads,
        "kv_heads": heads,
        "head_dim": width // heads,
        "d_ff": 4 * width,
        "gated": 0,
        "vocab": 0,
        "params": 12 * layers * width**2,
        "seq_len": 2048,
        "global_batch_tokens": 2048 * sequences * 1024,
        "microbatch_seqs": sequences,
        "tensor": tensor,
        "sequence_parallel": 0,
        "stage": stages,
        "virtual_stages": pieces,
        "schedule": SCHEDULES.index(schedule),
        "stack": STACKS.index("megatron"),
        "flash": 0,
        "kept": 1,
        "param_bytes": 2,
        "grad_bytes": 4,
        "optimizer_bytes": 12,
        "devices": tensor * stages,
    }
    return points(**(fields | changes))


@pytest.mark.parametrize("name", MEGATRON)
def test_korthikanti_exactly(name, shared):
    oracle = json.loads((shared / "data" / "oracles.json").read_text())
    kept, selective, weights = oracle["korthikanti_GiB"][name]
    whole = memory(megatron(name))
    assert whole.activation_bytes[0] / GIB == kept
    dropped = memory(
        megatron(name, sequence_parallel=1, remat=REMATS.index("selective"))
    )
    assert dropped.activation_bytes[0] / GIB == selective
    state = whole.parameter_bytes + whole.gradient_bytes + whole.optimizer_bytes
    assert state[0] / GIB == weights


def test_full_recomputation_keeps_the_inputs_of_layers():
    """2sbh a layer, equation 6's neighbour: section 5's first paragraph."""
    full = memory(megatron("22B", remat=REMATS.index("full")))
    assert full.activation_bytes[0] == 2 * 2048 * 4 * 6144 * 48


# --- Schedules


@pytest.mark.parametrize(
    ("schedule", "pieces", "batches", "first", "last"),
    [
        ("1f1b", 1, 32, 8, 1),
        ("1f1b", 1, 4, 4, 1),
        ("gpipe", 1, 32, 32, 32),
        ("interleaved", 2, 32, 8 * (1 + 7 / 16), (8 + 1) / 2),
        ("zero_bubble", 1, 32, 8, 8),
    ],
)
def test_microbatches_in_flight(schedule, pieces, batches, first, last):
    pipeline = points(
        stage=8,
        virtual_stages=pieces,
        schedule=SCHEDULES.index(schedule),
        seq_len=16,
        global_batch_tokens=16 * batches,
    )
    assert in_flight(pipeline)[0] == first
    assert in_flight(pipeline, last=True)[0] == last


def test_accumulation_holds_two_gradients_of_ours_and_one_of_others():
    fields = {"layers": 4, "d_model": 256, "n_heads": 2, "head_dim": 128, "d_ff": 1024}
    fields |= {"kv_heads": 2, "seq_len": 64, "microbatch_seqs": 1}
    for software, copies in (("xla", 2), ("megatron", 1)):
        one, two = (
            memory(
                points(global_batch_tokens=n, stack=STACKS.index(software), **fields)
            )
            for n in (64, 128)
        )
        assert two.gradient_bytes == copies * one.gradient_bytes


@pytest.mark.parametrize(("width", "padded"), [(128, 128), (64, 128), (192, 256)])
def test_a_block_made_again_holds_its_verbs_and_a_tpu_its_lanes(width, padded):
    fields = {"d_model": 256, "n_heads": 2, "kv_heads": 2, "head_dim": width}
    gpu = points(d_ff=1024, gated=0, torus_dims=0, **fields)
    tpu = points(d_ff=1024, gated=0, torus_dims=3, **fields)
    verbs = 2 * (4 * 256 + 4 * 2 * width + 1024)  # four of the model's width, one wide
    assert activations.made_bytes(gpu) == verbs
    lanes = 2 * (2 * 2 * (padded - width) + 4 * 128)
    assert activations.made_bytes(tpu) == verbs + lanes


def test_accumulation_holds_one_microbatch():
    assert in_flight(points(seq_len=16, global_batch_tokens=160))[0] == 1


# --- What rests: `explain` reads it off the tables


def explained(size, layout, family="llama", **changes):
    fields = {"batch": 64, "length": 512, "precision": "bfloat16"} | changes
    model = models.size(family, size)
    config = RunConfig(model, layouts.parse(layout, None), **fields)
    return config, cost.explain(config).bytes_by()


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize(
    "layout",
    [
        "fsdp=8",
        "data=8",
        "data=8+zero1",
        "data=8+zero2",
        "data=2,fsdp=4",
        "data=2,fsdp=4+zero1",
        "fsdp=4,tensor=8+sequence",
        "fsdp=2,tensor=16",
    ],
)
def test_weights_and_state_are_those_of_explain(layout, remat):
    config, said = explained("8b", layout, remat=remat)
    found = memory(points_of([config]))
    assert found.parameter_bytes[0] == pytest.approx(said["parameter"], rel=1e-4)
    assert found.gradient_bytes[0] == pytest.approx(said["gradient"], rel=1e-4)
    assert found.optimizer_bytes[0] == pytest.approx(said["optimizer"], rel=1e-4)


@pytest.mark.parametrize(("family", "size"), [("llama", "1b"), ("gpt2", "355m")])
def test_weights_of_other_families(family, size):
    config, said = explained(size, "data=2,fsdp=4", family=family)
    found = memory(points_of([config]))
    assert found.parameter_bytes[0] == pytest.approx(said["parameter"], rel=2e-3)
    assert found.optimizer_bytes[0] == pytest.approx(said["optimizer"], rel=2e-3)


@pytest.mark.parametrize(
    ("layout", "family", "size"),
    [
        ("fsdp=8", "llama", "8b"),
        ("fsdp=4,tensor=8+sequence", "llama", "8b"),
        ("tensor=16", "llama", "8b"),
        ("fsdp=8", "mixtral", "8x7b"),
    ],
)
def test_verbs_are_those_of_explain(layout, family, size):
    """Every verb of a block, whatever a policy then keeps of it."""
    config, _ = explained(size, layout, family=family)
    rows = {
        row.name: row.bytes
        for row in cost.explain(config).rows
        if row.what == "activation"
    }
    run = points_of([config])
    tokens = run.microbatch_seqs * run.seq_len
    own = [name for name in activations.BLOCK_VERBS if name in rows]
    assert len(own) == (11 if family == "mixtral" else 10)
    for name in own:
        mine = activations.verb_bytes(run, name) * tokens * run.layers
        assert mine[0] == rows[name], name


# --- What a block keeps: JAX says what its differentiation does


@jax.custom_vjp
def fused(q_BTNH, k_BSKH, v_BSKH):
    """Stands for a kernel: keeps its operands, no scores; its result is the verb's."""
    return q_BTNH + jnp.sum(k_BSKH) + jnp.sum(v_BSKH)


def _forward(q_BTNH, k_BSKH, v_BSKH):
    return fused(q_BTNH, k_BSKH, v_BSKH), (q_BTNH, k_BSKH, v_BSKH)


def _backward(kept, gradient):
    q_BTNH, k_BSKH, v_BSKH = kept
    return gradient * q_BTNH, k_BSKH, v_BSKH


fused.defvjp(_forward, _backward)

POLICIES = (
    "none",
    "full",
    "save:attention/attend",
    "save:attention/query,attention/key,attention/value,attention/attend",
    "save:attention/query,attention/attend,attention/out,ffn/up",
)


def residual_bytes(family, policy, precision="bfloat16"):
    """Bytes of one token that JAX keeps of one block, and the block's config."""
    sizes = {"L": 1, "D": 70, "N": 6, "K": 2, "H": 10, "F": 110, "V": 256}
    if family == "gpt2":
        sizes["K"] = 6
    model = dataclasses.replace(models.size(family, "toy"), **sizes)
    module, (batch, length) = models.family(family), (1, 16)
    params = jax.eval_shape(lambda: module.init(model, jax.random.key(0)))
    tokens_BT = jnp.zeros((batch, length), int)
    place = Placement(
        layouts.Layout({}),
        compute=jnp.dtype(precision),
        attend_with=lambda q, k, v, mask: fused(q, k, v),
    )
    per_batch = {n: tokens_BT for n in ("tokens_BT", "positions_BT", "segments_BT")}
    tables = jnp.ones((batch, length, 5), jnp.float32)
    per_batch |= {"sine_BTP": tables, "cosine_BTP": tables}
    layer = {
        dims.unstacked(name): jnp.zeros(leaf.shape[1:], leaf.dtype)
        for name, leaf in params["layers"].items()
    }

    def block(params, x_BTD):
        run = models.ops.segment(module.Block, model, {}).block
        return run(place, params, x_BTD, per_batch, None)[0]

    kept = saved_residuals(
        keeping.remat(block, policy, regather=False),
        layer,
        jnp.zeros((batch, length, model.D), precision),
    )
    arrays = [a for a, why in kept if a.shape[:2] == (1, 16) and "constant" not in why]
    # Statistics and rotary tables are one number a token or the same in every block.
    wide = [a for a in arrays if len(a.shape) < 4 or a.shape[2] > 1]
    wide = [a for a in wide if math.prod(a.shape[2:]) >= 10]
    return sum(math.prod(a.shape[2:]) * a.dtype.itemsize for a in wide), model


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_block_keeps_what_jax_says(family, policy):
    said, model = residual_bytes(family, policy)
    config = RunConfig(model, layouts.parse("fsdp=1"), length=16, batch=1)
    run = points_of([config]).replace(precision=0, flash=1)
    assert activations.kept_bytes(run, policy)[0] == said


@pytest.mark.parametrize(("family", "size"), [("llama", "8b"), ("mixtral", "8x7b")])
def test_recomputation_leaves_out_the_last_result(family, size):
    config, _ = explained(size, "fsdp=8", remat="full", family=family)
    run = points_of([config])
    entries = cost.record(config)
    inside = [e for e in entries if e.name in activations.BLOCK_VERBS]
    # What is recomputed counts attention as causal; the ledger says how dense it is.
    total = sum(entry.flops for entry in inside)
    last = sum(entry.flops for entry in entries if entry.ends)
    share = activations.recomputed_share(run, "full")[0]
    assert share == pytest.approx(1 - last / total, rel=1e-3)
    assert activations.recomputed_share(run, "none")[0] == 0


def test_what_the_host_holds_is_kept_but_not_here():
    """As many bytes as if it were saved; nothing done again; less on the device."""
    saved = "save:attention/query,ffn/gate,ffn/up"
    away = "save:attention/query;offload:ffn/gate,ffn/up"
    runs = [
        points_of([configure("llama", "8b", "fsdp=8", "h100:1x8", remat=policy)])
        for policy in (saved, away)
    ]
    assert runs[0].kept[0] == runs[1].kept[0]
    assert runs[0].recompute[0] == runs[1].recompute[0]
    again = activations.recomputed_share(runs[1], away)
    assert again == activations.recomputed_share(runs[0], saved)
    held = [memory(run).activation_bytes[0] for run in runs]
    there = sum(activations.verb_bytes(runs[1], f"ffn/{n}")[0] for n in ("gate", "up"))
    tokens = runs[0].microbatch_seqs[0] * runs[0].seq_len[0] * runs[0].layers[0]
    assert held[0] - held[1] == pytest.approx(there * tokens)
    near, far = (predict(run.replace(host_bytes_per_second=1e15)) for run in runs)
    assert far.step_seconds[0] == pytest.approx(near.step_seconds[0], rel=1e-3)
    slow = predict(runs[1].replace(host_bytes_per_second=1e9)).row(0)
    assert slow["seconds"]["host exposed"] > far.row(0)["seconds"]["host exposed"]
    moved = 2 * there * tokens / 1e9
    assert slow["step_seconds"] > moved


@pytest.mark.parametrize("policy", ["save:", "save:ffn/gat", "recompute:x", "all"])
def test_a_policy_that_is_none(policy):
    with pytest.raises(ValueError, match="ffn/gate"):
        activations.kept_bytes(points(), policy)


# --- Experts, offload, formats


def mixtral(**changes):
    fields = {
        "layers": 32,
        "d_model": 4096,
        "n_heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "d_ff": 0,
        "gated": 1,
        "vocab": 32000,
        "tied": 0,
        "n_experts": 8,
        "top_k": 2,
        "expert_d_ff": 14336,
        "params": 46_702_792_704,
        "seq_len": 4096,
        "global_batch_tokens": 4096 * 64,
        "kept": 1,
    }
    return points(**(fields | changes))


def test_experts_are_divided_over_their_axis_once():
    whole = memory(mixtral()).parameter_bytes[0]
    assert whole == 4 * 46_702_792_704
    experts = 32 * 8 * 3 * 4096 * 14336
    apart = memory(mixtral(data=8, expert=8)).parameter_bytes[0]
    assert apart == pytest.approx(4 * (46_702_792_704 - experts * 7 / 8))
    shared = memory(mixtral(fsdp=16, expert=8, zero_stage=3)).parameter_bytes[0]
    assert shared == pytest.approx(whole / 16)


def test_offload_and_eight_bits():
    run = mixtral(microbatch_seqs=1)
    away = memory(run.replace(offload=1.0))
    assert away.activation_bytes[0] == 0
    assert memory(run).activation_bytes[0] > 0
    narrow = memory(run.replace(param_bytes=1, grad_bytes=2, optimizer_bytes=12))
    assert narrow.parameter_bytes[0] == memory(run).parameter_bytes[0] / 4


def test_context_divides_tokens_and_zero_uses_it():
    one = memory(mixtral(fsdp=8, zero_stage=3))
    two = memory(mixtral(fsdp=8, zero_stage=3, context=2))
    assert two.activation_bytes[0] == one.activation_bytes[0] / 2
    assert two.parameter_bytes[0] == one.parameter_bytes[0] / 2


def test_latent_attention_is_counted_by_its_parameters(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK))
    model = shape.read(path)
    machine = columns.machine("h100:1x1")
    run = columns.points(model, machine, seq_len=4096, global_batch_tokens=4096)
    assert memory(run).parameter_bytes[0] == pytest.approx(4 * model.params)


DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "vocab_size": 129280,
}


def test_the_sum_is_of_its_parts_and_columns_are_columns():
    both = memory(Points.concat([mixtral(), mixtral(fsdp=8, zero_stage=3)]))
    assert isinstance(both, Memory)
    assert both.hbm_bytes.shape == (2,)
    np.testing.assert_allclose(both.hbm_bytes, sum(both))
    assert both.take(np.array([1])).hbm_bytes[0] == both.hbm_bytes[1]
