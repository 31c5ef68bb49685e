"""Predicted numbers against published ones, and against what is traced and made."""

import csv
import dataclasses
import functools
import importlib
import math
from pathlib import Path

import jax
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from scaling_lab import cost, dims, layouts, models
from scaling_lab.compile import hlo
from scaling_lab.config import RunConfig, validate
from scaling_lab.models import gpt2, llama
from scaling_lab.models.shape import sizes
from scaling_lab.optimizers import OptimizerConfig
from scaling_lab.train import make_program

PUBLISHED = (
    Path(__file__).parents[1] / "../shared/data/published_runs/published_runs.csv"
)
pytestmark = pytest.mark.usefixtures("quick_compiles")

ONE = layouts.parse("ddp", 1)
#: Losses, norms and scales: nobody lays these out.
SMALL_BYTES = 4096


def run_of(model, layout=ONE, **changes):
    fields = {"batch": 8, "length": 32, "stack": "scan"} | changes
    config = RunConfig(model, layout, **fields)
    validate(config)
    return config


# --- FLOPs in the conventions of the field


def model_of(row):
    """The model of a published row; GPT-3 has two matrices in its feed-forward."""
    names = {"L": "layers", "D": "d_model", "N": "n_heads", "F": "d_ff", "V": "vocab"}
    sizes = {letter: int(row[column]) for letter, column in names.items()}
    sizes["K"] = int(row["kv_heads"])
    sizes["H"] = int(row["head_dim"] or sizes["D"] // sizes["N"])
    family = gpt2 if row["model"].startswith("gpt3") else llama
    return family.Config(**sizes, length=int(row["seq_len"]))


def published():
    """Every dense row whose convention was verified.

    Not the mixtures of experts: their reports count the experts a token is sent to, and
    no family here has experts.
    """
    if not PUBLISHED.exists():
        pytest.skip(f"no published runs at {PUBLISHED}")
    with PUBLISHED.open() as file:
        rows = [r for r in csv.DictReader(file) if "VERIFIED" in r["flops_convention"]]
    return [row for row in rows if not row["model"].startswith("mixtral")]


def test_flops_reproduce_published_reports():
    rows = published()
    assert len(rows) >= 13
    for row in rows:
        config = run_of(model_of(row), batch=1, length=int(row["seq_len"]))
        rate = float(row["tokens_per_second_per_chip"])
        reported = float(row["tflops_per_chip"]) * 1e12 / rate
        causal = row["flops_convention"].startswith("causal")
        convention = "causal_half_attention" if causal else "palm_full_attention"
        found = cost.per_token(config)[f"{convention}_without_embedding"]
        assert found == pytest.approx(reported, rel=1e-4), row["run"]


def test_conventions_by_hand(tiny):
    config = run_of(tiny("llama"))
    layer = 64 * 8 * (2 * 8 + 2 * 4) + 3 * 64 * 128
    multiplied = 2 * layer + 64 * 256
    every = multiplied + 256 * 64 + 5 * 64
    attention = 2 * 12 * 8 * 8 * 32
    assert cost.parameters(config) == every
    assert cost.multiplied_parameters(config) == multiplied
    found = cost.per_token(config)
    assert found["6N"] == 6 * every
    assert found["6N_without_embedding"] == 6 * multiplied
    assert found["palm_full_attention"] == 6 * every + attention
    without = 6 * multiplied + attention / 2
    assert found["causal_half_attention_without_embedding"] == without


@pytest.mark.parametrize("family", models.with_experts())
def test_flops_are_of_the_experts_that_a_token_meets(family, tiny):
    """Of every convention: with idle ones Mixtral's MFU would be 3.6 times too high."""
    config = run_of(tiny(family))
    found, active = cost.per_token(config), sizes(config.model)["active_params"]
    assert active < cost.parameters(config)
    assert found["6N"] == 6 * active
    apart = found["6N"] - found["6N_without_embedding"]
    for name in ("palm_full_attention", "causal_half_attention", "masked_attention"):
        assert found[name] - found[f"{name}_without_embedding"] == pytest.approx(apart)


def test_a_second_heads_layer_is_no_part_of_one_attention():
    config = models.size("deepseek", "v3-mtp")
    alone = dataclasses.replace(config, further=0.0)
    assert sizes(config)["latent"] == sizes(alone)["latent"]


def test_full_and_causal_attention_part_at_long_context():
    config = run_of(models.size("llama", "70b"), batch=1, length=131_072)
    found = cost.per_token(config)
    ratio = found["palm_full_attention"] / found["causal_half_attention"]
    assert ratio == pytest.approx(1.55, abs=0.02)


# --- The ledger


@pytest.mark.parametrize("family", models.families())
def test_the_ledger_names_every_weight(family, tiny):
    for tied in (False, True):
        config = run_of(tiny(family, tied=tied))
        said = {
            f"{entry.name.rpartition('/')[2]}_{letters}"
            for entry in cost.record(config)
            for letters in entry.weights
        }
        made = {path.rpartition("/")[2] for path in dims.leaves(config.abstract_params)}
        made = {n.replace("_L", "_") for n in made if "bias" not in n}
        assert said == made | {"head_DV"}


def test_the_ledger_of_405b_allocates_nothing():
    config = run_of(models.size("llama", "405b"), batch=1024, length=8192)
    entries = {entry.name: entry for entry in cost.record(config)}
    gate = entries["ffn/gate"]
    assert gate.times == 126
    assert gate.flops == 126 * 2 * 1024 * 8192 * 16_384 * 53_248
    assert entries["attention/attend"].density == pytest.approx(0.5, rel=1e-3)
    assert cost.parameters(config) == pytest.approx(405e9, rel=3e-3)


def dot_flops(jaxpr):
    """FLOPs of every contraction of a traced program, loops by their length."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            summed = equation.params["dimension_numbers"][0][0]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in summed)
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda value: hasattr(value, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                times = equation.params.get("length", 1)
                total += dot_flops(inner) * times
    return total


def used_of(jaxpr):
    """The program without what no result needs, as a compiler will have it."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def traced_step(config, packed):
    program = make_program(config, jax.devices()[:1])
    batch = program.put(packed(config.batch, config.length))
    return program, (jax.eval_shape(program.init), batch)


ATTENTION_IS_KEPT = pytest.mark.xfail(
    strict=True, reason="what attention returns is kept before it has its name"
)


#: Plain, with biases, with windows. How often experts multiply is their dispatch's.
COUNTED = ("llama", "gpt2", "gemma3")


@pytest.mark.parametrize("family", COUNTED)
@pytest.mark.parametrize("stack", ["scan", "unroll"])
@pytest.mark.parametrize(
    "remat",
    [
        "none",
        "full",
        "save:attention/out,ffn/up",
        "save:attention/attend",
        "save:ffn/down",
        pytest.param("recompute:attention/attend", marks=ATTENTION_IS_KEPT),
    ],
)
def test_executed_flops_are_those_of_the_traced_step(
    family, stack, remat, tiny, packed
):
    config = run_of(tiny(family), stack=stack, remat=remat, target="cpu:1")
    program, arguments = traced_step(config, packed)
    found = dot_flops(used_of(jax.make_jaxpr(program.step)(*arguments).jaxpr))
    executed = cost.executed_per_token(config) * config.tokens_per_step
    assert found == pytest.approx(executed, rel=1e-9)


def test_verbs_named_to_be_recomputed_are(tiny, packed):
    config = run_of(tiny("llama"), remat="recompute:attention/out,ffn/up,ffn/down")
    program, arguments = traced_step(config, packed)
    found = dot_flops(used_of(jax.make_jaxpr(program.step)(*arguments).jaxpr))
    executed = cost.executed_per_token(config) * config.tokens_per_step
    assert found == pytest.approx(executed, rel=1e-9)


def test_compiled_flops_are_thrice_the_forward_pass(tiny, packed):
    model = tiny("llama", D=128, F=512, H=16)
    config = run_of(model, stack="unroll", target="cpu:1", batch=4, length=64)
    program, arguments = traced_step(config, packed)
    compiled = program.step.lower(*arguments).compile()
    forward = sum(entry.flops / entry.density for entry in cost.record(config))
    # Norms, softmax, the loss and AdamW are elementwise and free in the ledger.
    assert 1.0 < compiled.cost_analysis()["flops"] / (3 * forward) < 1.06


def test_recomputation_costs_what_it_makes_again(tiny):
    none = run_of(tiny("llama"))
    tokens = none.tokens_per_step
    forward = {e.name: e.flops / e.density / tokens for e in cost.record(none)}
    again = {
        remat: cost.executed_per_token(dataclasses.replace(none, remat=remat))
        - cost.executed_per_token(none)
        for remat in ("full", "save:ffn/up", "recompute:ffn/gate,ffn/up")
    }
    made_again = sum(forward.values()) - forward["head"] - forward["ffn/down"]
    assert again["full"] == pytest.approx(made_again)
    assert again["save:ffn/up"] == pytest.approx(made_again - forward["ffn/up"])
    two = forward["ffn/gate"] + forward["ffn/up"]
    assert again["recompute:ffn/gate,ffn/up"] == pytest.approx(two)
    assert cost.executed_per_token(none) == pytest.approx(3 * sum(forward.values()))


def test_microbatches_change_no_flops(tiny):
    one = run_of(tiny("llama"), accumulate=1)
    two = run_of(tiny("llama"), accumulate=2)
    assert cost.per_token(one) == cost.per_token(two)


# --- Where everything lives

NAMED = layouts.names()


def toy_layout(name):
    if "=" in name:
        return layouts.parse(name, 8)
    file = importlib.import_module(f"scaling_lab.layouts.{name}")
    return file.layout(**file.TOY)


def on_first_device(tree):
    """Bytes that rest on device 0; scalars that count steps left out."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


@pytest.mark.parametrize("name", NAMED)
def test_bytes_are_those_on_a_device_after_init(name, tiny):
    config = run_of(tiny("llama"), toy_layout(name))
    state = make_program(config).init()
    found = cost.explain(config).bytes_by()
    assert found["parameter"] == on_first_device(state.params)
    assert found["optimizer"] == on_first_device(state.optimizer)


@pytest.mark.parametrize("optimizer", ["adafactor", "lion", "muon"])
def test_optimizer_bytes_of_every_optimizer(optimizer, tiny):
    config = run_of(
        tiny("llama"),
        layouts.parse("fsdp=4,tensor=2", 8),
        optimizer=OptimizerConfig(optimizer),
    )
    state = make_program(config).init()
    found = cost.explain(config).bytes_by()
    assert found["optimizer"] == on_first_device(state.optimizer)


def test_bytes_of_the_zeros_by_hand(tiny):
    model = tiny("llama")
    whole = 4 * llama.parameter_count(model)
    wanted = {  # parameters, gradients, AdamW's moments in parts of the whole
        "ddp": (1, 1, 1),
        "zero1": (1, 1, 1 / 8),
        "zero2": (1, 1 / 8, 1 / 8),
        "fsdp": (1 / 8, 1 / 8, 1 / 8),
        "hsdp": (1 / 4, 1 / 4, 1 / 4),
    }
    for name, (params, grads, optimizer) in wanted.items():
        found = cost.explain(run_of(model, toy_layout(name))).bytes_by()
        assert found["parameter"] == params * whole
        assert found["gradient"] == grads * whole
        steps = found["optimizer"] - optimizer * 2 * whole
        assert 0 < steps <= 16


def test_explain_says_where_and_in_json(tiny):
    config = run_of(tiny("llama"), toy_layout("fsdp=4,tensor=2+sequence"))
    rows = {(r.what, r.name): r for r in cost.explain(config).rows}
    gate = rows["parameter", "layers/gate_LDF"]
    assert gate.placement == "L, D@fsdp, F@tensor"
    assert gate.bytes == 4 * 2 * 64 * 128 // 8
    assert rows["activation", "ffn/down"].placement == "B@fsdp, T@tensor, D"
    assert rows["activation", "ffn/gate"].placement == "B@fsdp, T, F@tensor"
    plain = cost.explain(config).to_json()
    assert plain["layout"] == "fsdp=4,tensor=2+sequence"
    assert sum(plain["bytes_per_device"].values()) == sum(
        row["bytes"] for row in plain["rows"]
    )


# --- What crosses the wires, and nothing that nobody asked for


@functools.cache
def compiled_collectives(config, packed):
    program = make_program(config)
    batch = program.put(packed(config.batch, config.length))
    compiled = program.step.lower(jax.eval_shape(program.init), batch).compile()
    return hlo.collectives(compiled.as_text(), config.layout.mesh)


#: What XLA may make of an implied kind: an all-reduce does for a reduce-scatter.
WEAKER = {"reduce-scatter": {"reduce-scatter", "all-reduce"}}


def allowed(implied):
    """(kind, axes) that implied collectives explain; sums over two axes may merge."""
    found = {
        (kind, tuple(row["axes"]))
        for row in implied
        for kind in WEAKER.get(row["kind"], {row["kind"]})
    }
    summed = {axes for kind, axes in found if kind == "all-reduce"}
    if ("data",) in summed and ("fsdp",) in summed:
        found.add(("all-reduce", ("data", "fsdp")))
    return found


CASES = [("llama", name) for name in (*NAMED, "fsdp=4,tensor=2+sequence")]
SLOW_CASES = [
    *(("gpt2", name) for name in NAMED),
    ("llama", "data=2,fsdp=2,tensor=2+sequence+zero1"),
    ("llama", "data=2,fsdp=4+gather_once"),
    ("llama", "data=2,fsdp=4+gather_once=2"),
]


@pytest.mark.parametrize(
    ("family", "name"),
    [*CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW_CASES)],
)
def test_no_collective_that_nobody_asked_for(family, name, tiny, packed):
    config = run_of(tiny(family), toy_layout(name))
    implied = cost.explain(config).collectives()
    found = compiled_collectives(config, packed)
    heavy = [item for item in found if item.bytes >= SMALL_BYTES]
    known = allowed(implied)
    strange = [item for item in heavy if (item.kind, item.axes) not in known]
    assert not strange, [(i.kind, i.axes, i.bytes, i.op_name) for i in strange]
    # And what is implied is there, or the tables do nothing.
    axes = {item.axes for item in found} | {
        (axis,) for item in found for axis in item.axes
    }
    for row in implied:
        assert row["bytes"] < SMALL_BYTES or tuple(row["axes"]) in axes, row


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero1", "zero2", "hsdp", "tensor"])
def test_bytes_on_the_wires(name, tiny, packed):
    config = run_of(tiny("llama"), toy_layout(name))
    implied = cost.explain(config).collectives()
    found = compiled_collectives(config, packed)
    gathered = sum(r["bytes"] for r in implied if r["kind"] == "all-gather")
    assert sum(i.bytes for i in found if i.kind == "all-gather") == pytest.approx(
        gathered, rel=0.01
    )
    if name != "hsdp":  # there the embeddings are summed over both axes at once
        summed = sum(r["bytes"] for r in implied if r["kind"] != "all-gather")
        sums = ("all-reduce", "reduce-scatter")
        reduced = sum(i.bytes for i in found if i.kind in sums)
        assert reduced == pytest.approx(summed, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wide_tables_are_looked_up_by_columns(family, tiny, packed):
    """What was found crosses the wires, and its gradient; the table only for a head."""
    config = run_of(tiny(family, D=512), toy_layout("fsdp"))
    implied = cost.explain(config).collectives()
    found = compiled_collectives(config, packed)
    tokens = 2 * config.tokens_per_step // 8 * 512 * 4

    def of(kind, items):
        return sum(item["bytes"] for item in items if item["kind"] == kind)

    compiled = [dataclasses.asdict(item) for item in found]
    tables = 2 if family == "gpt2" else 1  # and of positions
    assert of("all-to-all", implied) == tokens * tables
    # Both tables' results have one gradient, which crosses once.
    assert of("all-to-all", compiled) == tokens * (1 + tables) / 2
    for kind in ("all-gather", "reduce-scatter"):
        assert of(kind, compiled) == pytest.approx(of(kind, implied), rel=0.02), kind


def test_collectives_by_hand(tiny):
    model = tiny("llama")
    whole = 4 * llama.parameter_count(model)
    assert cost.explain(run_of(model, toy_layout("ddp"))).collectives() == [
        {"kind": "all-reduce", "axes": ["data"], "count": 12, "bytes": whole}
    ]
    ends = 4 * (2 * 256 * 64 + 64)
    rows = cost.explain(run_of(model, toy_layout("fsdp"))).collectives()
    sizes = {row["kind"]: row["bytes"] for row in rows}
    assert sizes["reduce-scatter"] == whole
    assert sizes["all-gather"] == 2 * whole - ends  # a layer's weights twice


MEGATRON = {  # Shoeybi et al. 2019: two sums a layer, forward; their mirror, backward
    "embed": ["all-reduce"],
    "attention/query": ["all-reduce"],
    "attention/out": ["all-reduce"],
    "ffn/gate": ["all-reduce"],
    "ffn/down": ["all-reduce"],
    "ffn/ffn_norm": [],
    "head": ["all-reduce"],
}
SEQUENCE = {  # Korthikanti et al. 2022: each sum is a scatter, and a gather before it
    "embed": ["all-reduce"],
    "attention/query": ["all-gather", "reduce-scatter"],
    "attention/out": ["reduce-scatter", "all-gather"],
    "ffn/gate": ["all-gather", "reduce-scatter"],
    "ffn/down": ["reduce-scatter", "all-gather"],
    "ffn/ffn_norm": [],
    "head": ["all-gather", "reduce-scatter"],
}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("fsdp_tensor", MEGATRON), ("fsdp=4,tensor=2+sequence", SEQUENCE)],
)
def test_what_each_verb_of_a_layer_sends(name, wanted, tiny):
    config = run_of(tiny("llama"), toy_layout(name))
    rows = {r.name: r for r in cost.explain(config).rows if r.what == "activation"}
    for verb, kinds in wanted.items():
        found = rows[verb].collectives
        assert [item.kind for item in found] == kinds, verb
        assert all(item.axes == ("tensor",) for item in found)
        # Every one of them is about the whole of BTD, whichever half of it moves.
        layers = 1 if verb in ("embed", "head") else 2
        assert all(item.bytes == layers * 8 * 32 * 64 * 4 // 4 for item in found), verb


def test_positions_apart_leave_norms_and_biases_partial(tiny):
    """Their gradients are summed over `tensor` too; a matrix meets whole positions."""
    config = run_of(tiny("gpt2"), toy_layout("tensor_sequence"))
    reduced = {
        row.name.rpartition("/")[2]: [item.axes for item in row.collectives]
        for row in cost.explain(config).rows
        if row.what == "gradient"
    }
    assert reduced["attention_norm_LD"] == [("tensor",)]
    assert reduced["down_bias_LD"] == [("tensor",)]
    assert reduced["up_bias_LF"] == []
    assert reduced["up_LDF"] == reduced["embed_VD"] == reduced["position_TD"] == []


def test_key_value_heads_held_whole_are_summed(tiny):
    """Four heads on eight devices: every device has a part of their gradient."""
    few = cost.explain(run_of(tiny("llama"), toy_layout("tensor")))
    enough = cost.explain(run_of(tiny("llama", K=8), toy_layout("tensor")))
    found = {
        explanation: [
            item
            for row in explanation.rows
            if row.name == "attention/attend"
            for item in row.collectives
        ]
        for explanation in (few, enough)
    }
    assert found[enough] == []
    (item,) = found[few]
    assert (item.kind, item.axes) == ("all-reduce", ("tensor",))
    assert item.bytes == 2 * 2 * 8 * 32 * 4 * 8 * 4
