"""The search: what is legal, what fits, what is first, and why the rest is not."""

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest

import scaling_lab as lab
from scaling_lab import cost, layouts, models, plan, record
from scaling_lab.config import RunConfig, validate
from scaling_lab.cost.memory import memory
from scaling_lab.cost.predict import predict
from scaling_lab.cost.runs import points_of
from scaling_lab.dims import AXES
from scaling_lab.hardware import parse_target
from scaling_lab.parallel.sight import Sight
from scaling_lab.plan import columns, emit, huggingface, law, rank, sizes, words
from scaling_lab.plan.candidates import POLICIES, candidates, policy_of
from scaling_lab.plan.question import Question, sequences, tokens
from scaling_lab.sweep.run import check_legal

NO_STAGES = tuple(axis for axis in AXES if axis != "stage")


def question(family="llama", size="8b", target="tpu-v5p:4x4x4", **changes):
    shape = plan.of_config(models.size(family, size))
    fields = {"batch": 128, "length": 4096} | changes
    return Question(shape, parse_target(target), **fields)


def rows(found):
    names = list(found.table)
    for values in zip(*found.table.values(), strict=True):
        yield dict(zip(names, map(int, values), strict=True))


# --- Words


@pytest.mark.parametrize(
    ("text", "length", "batch"),
    [
        ("4M", 8192, 512),
        ("4m", 8192, 512),
        ("100000", 4096, 24),
        ("1.5K", 512, 3),
        ("4e6", 8192, 488),
        ("4,194,304", 8192, 512),
    ],
)
def test_batches_in_tokens(text, length, batch):
    assert sequences(text, length) == batch


def test_a_trillion_tokens_is_not_a_batch():
    assert tokens("2T") == 2 * 2**40


@pytest.mark.parametrize("text", ["4 M tokens", "", "M", "-4M", "4MB"])
def test_a_batch_that_is_no_number(text):
    with pytest.raises(ValueError, match="as 4M"):
        sequences(text, 8192)


def test_a_batch_that_nobody_counts():
    for text in ("1e300", "1e400"):
        with pytest.raises(ValueError, match="at most"):
            sequences(text, 8192)


def test_a_batch_of_less_than_a_sequence():
    with pytest.raises(ValueError, match="--batch-tokens 8192"):
        sequences(1000, 8192)


def test_a_question_that_cannot_be():
    with pytest.raises(ValueError, match="positions"):
        question("gpt2", "124m", length=4096)
    with pytest.raises(ValueError, match="did you mean tensor"):
        question(axes=("data", "tensr"))
    with pytest.raises(ValueError, match="node_gbps"):
        question(node_gbps=0)
    with pytest.raises(ValueError, match="name a machine"):
        plan.plan(question(target="local"))


# --- Laws


def test_every_candidate_is_legal_one_by_one():
    asked = question(size="70b", target="h100:4x8", batch=96, length=8192)
    found, model = candidates(asked), asked.shape
    seen = 0
    for row in itertools.islice(rows(found), 0, None, 97):
        seen += 1
        assert row["expert"] == 1
        sizes_ = ("data", "fsdp", "tensor", "context", "stage")
        assert math.prod(row[axis] for axis in sizes_) == 32
        assert model.n_heads % row["tensor"] == 0
        assert row["ulysses"] == 0 or row["context"] > 1
        assert not row["ulysses"] or 64 % (row["context"] * row["tensor"]) == 0
        assert model.d_ff % row["tensor"] == model.vocab % row["tensor"] == 0
        assert not model.kv_heads % row["tensor"] or not row["tensor"] % model.kv_heads
        assert 8 % row["tensor"] == 0  # stays inside a node
        parts = row["stage"] * row["pieces"]
        assert model.layers >= 0.95 * parts * math.ceil(model.layers / parts)
        replicas = row["data"] * row["fsdp"]
        count = 96 // replicas // row["sequences"]
        assert count * replicas * row["sequences"] == 96
        assert row["stage"] == 1 or count >= row["stage"]
        assert row["pieces"] == 1 or count % row["stage"] == 0
        assert row["zero"] not in (1, 2) or row["data"] > 1
        assert (row["zero"] == 3) == (row["fsdp"] > 1 and row["zero"] not in (1, 2))
    assert seen > 100


def test_nothing_legal_is_left_out():
    """Of the trained axes: every mesh that `layouts.check` allows is a candidate."""
    asked = question(target="tpu-v5p:2x2x4", axes=AXES, batch=16)
    axes = [axis for axis in AXES if axis != "expert"]  # of a dense model
    found = {tuple(row[axis] for axis in axes) for row in rows(candidates(asked))}
    expected = set()
    for mesh in itertools.product((1, 2, 4, 8, 16), repeat=len(axes)):
        if math.prod(mesh) != 16:
            continue
        text = ",".join(f"{a}={n}" for a, n in zip(axes, mesh, strict=True))
        config = RunConfig(
            asked.shape.config,
            layouts.parse(text),
            target=asked.target.text,
            batch=16,
            length=asked.length,
            accumulate=mesh[axes.index("stage")],
        )
        try:
            validate(config)
        except layouts.IllegalLayout:
            continue
        expected.add(mesh)
    assert found == expected
    assert len(found) > 10


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_trained_validates_as_a_run(family):
    size = {"llama": "1b", "gpt2": "1.5b"}[family]
    asked = question(
        family, size, "h100:1x8", axes=AXES, batch=32, length=1024, optimizer="lion"
    )
    found = plan.plan(asked, top=50)
    assert len(found.choices) >= 4
    for choice in found.choices:
        assert choice.trained
        config = plan.config_of(asked, choice)
        validate(config)
        assert config.batch == 32
        assert config.accumulate == choice.microbatches
        # The plan's bytes are those of the run.
        run = memory(points_of([config]))
        assert run.hbm_bytes[0] == pytest.approx(choice.peak_bytes, rel=1e-6)


def test_refusals_are_counted_and_said():
    refused = candidates(question(batch=48)).refused
    assert any("48 sequences" in said for said in refused)
    assert any("L=32" in said for said in refused)


def test_layers_need_not_divide_when_the_ends_take_their_place():
    """126 layers on 16 stages, as they were trained; 80 on 32 would leave 16 empty."""
    found = candidates(question(size="405b", target="h100:64x8", batch=512))
    assert 16 in found.table["stage"]
    found = candidates(question(size="70b", target="h100:64x8", batch=512))
    assert 16 in found.table["stage"] and 32 not in found.table["stage"]


def test_a_stage_that_holds_more_needs_more():
    asked = question(size="405b", target="h100:64x8", batch=512)
    found = candidates(asked)
    table = found.table
    one = (table["stage"] == 16) & (table["pieces"] == 1) & (table["fsdp"] == 1)
    run = rank.as_points(asked, found.take(np.flatnonzero(one)))
    priced, exact = memory(run), memory(run.replace(layers=128, params=np.nan))
    np.testing.assert_allclose(priced.activation_bytes, exact.activation_bytes)


def test_no_legal_mesh_says_what_batch_would_have_one():
    asked = question(target="gb200:1x72", batch=512)
    with pytest.raises(ValueError, match=r"504 sequences .--batch-tokens \d+. have"):
        plan.plan(asked)
    assert plan.plan(dataclasses.replace(asked, batch=504)).choices


def test_tensor_leaves_a_node_only_when_asked():
    narrow = candidates(question(target="h100:4x8"))
    wide = candidates(question(target="h100:4x8", wide_tensor=True))
    assert max(narrow.table["tensor"]) == 8
    assert max(wide.table["tensor"]) == 32


def test_no_legal_mesh_says_which_laws():
    asked = question(target="tpu-v5p:4x4x4", axes=("tensor",), batch=3)
    with pytest.raises(ValueError, match=r"tensor does not divide N=32"):
        plan.plan(asked)


def test_experts_are_a_subgroup():
    shape = huggingface.read(MIXTRAL)
    asked = Question(shape, parse_target("h100:2x8"), batch=64, length=4096)
    found = candidates(asked)
    assert set(found.table["expert"]) == {1, 2, 4, 8}
    group = found.table["data"] * found.table["fsdp"] * found.table["context"]
    assert not np.any(group % found.table["expert"])
    assert "ffn/experts/up" in policy_of(asked, 3)  # where a dense model has ffn/up


def test_policies_name_verbs_of_the_model():
    for family, size in (("llama", "1b"), ("gpt2", "124m")):
        asked = question(family, size, length=1024)
        run = RunConfig(asked.shape.config, layouts.parse("data=1"))
        names = {entry.name for entry in cost.record(run)}
        for code in range(len(POLICIES)):
            kind, _, verbs = policy_of(asked, code).partition(":")
            assert kind in ("none", "full", "save")
            assert not verbs or set(verbs.split(",")) <= names


# --- Ranking


def test_the_order_is_the_predictions_and_ties_are_intervals():
    found = plan.plan(question(), top=30)
    seconds = [choice.step_seconds for choice in found.choices]
    assert seconds == sorted(seconds)
    first = found.choices[0]
    for choice in found.choices:
        overlap = choice.step_seconds_low <= first.step_seconds_high
        assert choice.tied == overlap
        assert choice.peak_bytes <= found.question.limit_bytes
        assert sum(choice.seconds_by.values()) == pytest.approx(choice.step_seconds)
        assert sum(choice.bytes_by.values()) == pytest.approx(choice.peak_bytes)
    assert len({choice.layout for choice in found.choices}) == len(found.choices)


def test_nothing_that_fits_is_faster():
    asked = question(axes=AXES)
    priced = rank.rank(asked)
    best = plan.plan(asked, top=1).choices[0]
    assert best.step_seconds == priced.seconds[priced.fits].min()


@pytest.mark.parametrize(
    ("family", "size", "target", "changes"),
    [
        ("llama", "8b", "tpu-v5p:4x4x4", {"batch": 64}),
        ("llama", "8b", "h100:1x8", {"batch": 32, "length": 32768}),
        ("gemma3", "1b", "tpu-v6e:4x4", {"axes": ("data", "fsdp", "tensor")}),
        ("mixtral", "8x7b", "h100:4x8", {"axes": ("data", "fsdp", "expert")}),
        ("gpt2", "1.5b", "a100:1x8", {"batch": 64, "length": 1024}),
    ],
)
def test_a_choice_is_predicted_as_a_run_is(family, size, target, changes):
    """One road to a number: `plan`'s answer is what `predict` says of that layout."""
    asked = question(family, size, target, **changes)
    near = [each for each in plan.plan(asked).choices if not each.host]
    trained = [each for each in near if each.trained]
    run = points_of([plan.config_of(asked, choice) for choice in trained])
    found = predict(run)
    seconds = [choice.step_seconds for choice in trained]
    np.testing.assert_allclose(found.step_seconds, seconds, rtol=1e-4)
    held = [choice.peak_bytes for choice in trained]
    np.testing.assert_allclose(found.hbm_bytes, held, rtol=1e-6)


def test_reasons_name_what_costs_most():
    asked = question(size="70b", target="h100:8x8", length=8192, batch=512)
    found = plan.plan(asked, top=200)
    said = " ".join(choice.reason for choice in found.choices[1:])
    assert "exposed tensor communication" in said
    assert "memory" in said
    pipelined = plan.plan(question(batch=64, axes=("data", "fsdp", "stage")), top=50)
    (deep,) = (c for c in pipelined.choices if c.mesh == {"stage": 2, "fsdp": 32})
    assert "bubble" in deep.reason
    assert found.choices[0].reason.startswith("fastest")
    assert all(choice.reason.startswith("+") for choice in found.choices[1:])
    assert all("needs" in choice.reason for choice in found.unfit)
    for choice in found.unfit:
        assert choice.peak_bytes > asked.limit_bytes


def test_a_slow_network_keeps_traffic_inside_the_node():
    def far(choice):
        return sum(s for n, s in choice.seconds_by.items() if n.startswith("exposed"))

    fast = plan.plan(question(size="70b", target="h100:8x8", node_gbps=3200)).choices[0]
    slow = plan.plan(question(size="70b", target="h100:8x8", node_gbps=100)).choices[0]
    assert slow.step_seconds > fast.step_seconds
    assert far(slow) > far(fast)


def test_node_gbps_is_of_a_node():
    machine = columns.machine("h100:2x8", node_gbps=400)
    assert machine["network_bytes_per_second"] == 400e9 / 8 / 8
    assert columns.machine("tpu-v4:4x4x4", node_gbps=400)[
        "network_bytes_per_second"
    ] == (400e9 / 8 / 4 / 2)


def test_state_moves_to_the_host_where_a_mesh_fits_no_other_way():
    asked = question(size="70b", target="h200:1x8", axes=AXES, batch=64)
    priced = rank.rank(asked)
    away = priced.candidates.table["host"] == 1
    assert np.any(away)
    assert np.all(priced.fits[away])
    meshes = priced.candidates.meshes()
    assert not np.isin(meshes[away], meshes[priced.fits & ~away]).any()
    found = plan.plan(asked, top=50)
    for choice in found.choices:
        assert choice.host
        # Stages divide layers, and state comes from the host layer by layer.
        assert choice.trained == ("stage" not in choice.mesh)
        assert choice.layout.endswith("+offload_optimizer")
        if choice.trained:  # as it is written, for every command
            assert layouts.parse(choice.layout, asked.devices).mesh == choice.mesh
        state = 8 * asked.shape.params / 8
        waits = 2 * state / asked.target.chip.host_bytes_per_second
        assert choice.seconds_by["optimizer"] > waits
        assert "host" in choice.optimizer
        assert choice.bytes_by["optimizer_bytes"] == 0
    flags = emit.flags("megatron", asked, found.choices[0])
    assert flags.values["optimizer-cpu-offload"] is True
    # A chip whose way to the host nobody tells keeps its state.
    unknown = question(size="405b", target="gb200:1x8", batch=64)
    assert not rank.rank(unknown).candidates.table["host"].any()


def test_tens_of_thousands_of_candidates():
    priced = rank.rank(question(size="70b", target="tpu-v5p:8x8x8", batch=512))
    assert len(priced.candidates) > 50_000


# --- Confirmation by a compiler


def compiler(verdicts, seconds=()):
    """Answers in turn: bytes, or ``None`` for a compiler that runs out of memory.

    seconds: what each step takes; none where the list is empty.
    """
    asked = []

    def compile_run(config):
        peak = verdicts[len(asked)]
        asked.append(config)
        fits = peak is not None
        return record.RunRecord(
            id=config.id,
            environment="",
            status="ok" if fits else "oom",
            reason=None if fits else "needs 120 GiB a device",
            asked={},
            compiled={
                "peak_bytes": peak or 2**37,
                "fits": fits,
                **({"step_seconds": seconds[len(asked) - 1]} if seconds else {}),
            },
        )

    return compile_run, asked


def test_where_the_compiler_disagrees_is_said():
    from scaling_lab.cli.plan_table import disagreements

    best = plan.plan(question(), top=1).choices[0]
    within = {"step_seconds": best.step_seconds}
    column = {
        "step_seconds": 3 * best.step_seconds_high,
        "exposed_seconds": 2.0,
        "by_verb": {"head": {"seconds": 1.0}, "ffn/experts": {"seconds": 9.0}},
    }
    heard = [
        dataclasses.replace(best, compiled=said) for said in (None, within, column)
    ]
    (line,) = disagreements(heard)
    assert line.startswith(best.layout) and "outside its interval" in line
    assert "most is ffn/experts, 9.00 s" in line and "2.00 s wait for wires" in line


def test_the_best_are_confirmed():
    compile_run, asked = compiler([2**30, 2**31])
    found = plan.confirm(plan.plan(question(axes=AXES)), 2, compile_run)
    assert [choice.confirmed for choice in found.choices[:3]] == [True, True, None]
    assert [choice.peak_bytes for choice in found.choices[:2]] == [2**30, 2**31]
    assert [config.layout.name for config in asked] == [
        choice.layout for choice in found.choices[:2]
    ]


@pytest.mark.parametrize(
    ("target", "flags", "given"),
    [
        ("tpu-v5p:4x4x4", None, "--xla_tpu_enable_async_collective_fusion=true"),
        ("h100:8x8", None, "--xla_gpu_experimental_parallel_collective_overlap_limit"),
        ("h100:8x8", "overlap", "--xla_gpu_enable_pipelined_all_gather=true"),
        ("tpu-v5p:4x4x4", "", ""),
        ("tpu-v5e:8x8", None, ""),
    ],
)
def test_a_plan_compiles_with_the_flags_that_hide_communication(target, flags, given):
    compile_run, asked = compiler([2**30])
    found = plan.plan(question(target=target, axes=("fsdp",)))
    found = plan.confirm(found, 1, compile_run, flags=flags)
    assert given in asked[0].xla_flags and bool(given) == bool(asked[0].xla_flags)
    assert found.choices[0].to_json()["compiled"]["xla_flags"] == asked[0].xla_flags


@pytest.mark.parametrize(
    ("peak", "seconds", "stack"),
    [(2**31, 1.5, "scan:2"), (2**31, 2.5, "auto"), (None, 1.0, "auto")],
)
def test_the_fastest_keeps_two_layers_a_turn_where_they_are_faster(
    peak, seconds, stack
):
    compile_run, asked = compiler([2**30, 2**30, peak], [3.0, 2.0, seconds])
    found = plan.confirm(plan.plan(question(axes=AXES)), 2, compile_run)
    assert [config.stack for config in asked] == ["auto", "auto", "scan:2"]
    assert asked[2].layout == asked[1].layout
    first, second = found.choices[:2]
    assert first.compiled["stack"] == "auto" and second.compiled["stack"] == stack
    assert second.compiled["step_seconds"] == min(2.0, seconds if peak else 2.0)
    assert second.confirmed and not any(
        choice.confirmed is False for choice in found.choices
    )


def test_groups_of_layers_have_several_a_turn_already():
    compile_run, asked = compiler([2**30, 2**30], [2.0, 1.0])
    found = plan.plan(question(axes=("fsdp",)))
    first = found.choices[0]
    kept = dataclasses.replace(first, layout=f"{first.layout}+gather_once=2")
    plan.confirm(dataclasses.replace(found, choices=(kept,)), 1, compile_run)
    assert [(run.layout.once_in, run.stack) for run in asked] == [(2, "auto")]


def test_what_the_compiler_refuses_is_last_and_the_next_is_first():
    compile_run, asked = compiler([None, 2**30])
    before = plan.plan(question(axes=AXES), top=4)
    found = plan.confirm(before, 1, compile_run)
    assert len(asked) == 2
    assert found.choices[0].confirmed is True
    assert found.choices[0].reason.startswith("fastest")
    assert found.choices[-1].confirmed is False
    assert found.choices[-1].index == before.choices[0].index
    assert "needs 120 GiB" in found.choices[-1].reason


def test_patience_ends():
    compile_run, asked = compiler([None] * 10)
    found = plan.confirm(plan.plan(question(axes=AXES)), 2, compile_run)
    assert len(asked) == 4
    assert not any(choice.confirmed for choice in found.choices)


@pytest.mark.parametrize("mask", ["window=512", "window=512,global=4", "chunk=1024"])
def test_a_plan_under_a_mask_is_priced_as_its_runs_are(mask):
    asked = plan.ask(
        "llama", "8b", target="h100:2x8", batch_tokens="512K", length=8192, mask=mask
    )
    best = next(c for c in plan.plan(asked, top=4).choices if c.trained)
    config = plan.config_of(asked, best)
    assert config.model.mask == Sight.parse(mask)
    priced = float(predict(points_of([config])).step_seconds[0])
    assert best.step_seconds == pytest.approx(priced, rel=2e-3)
    full = dataclasses.replace(asked, shape=plan.of_config(models.size("llama", "8b")))
    assert plan.plan(full, top=1).choices[0].step_seconds > best.step_seconds


def test_a_mask_of_a_model_that_is_no_family_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPT_OSS))
    with pytest.raises(ValueError, match="window=512: .* is no family of this lab"):
        plan.ask(model=path, target="h100:2x8", mask="window=512")
    with pytest.raises(ValueError, match="mask"):
        plan.ask("llama", "8b", mask="widow=512")


def test_what_cannot_be_compiled_says_why(tmp_path):
    found = plan.plan(question(axes=("context", "stage", "tensor"), batch=64))
    untrained = dataclasses.replace(
        found, choices=tuple(c for c in found.choices if not c.trained)
    )
    with pytest.raises(ValueError, match="optimizer state on the host"):
        plan.confirm(untrained, 1, compiler([])[0])
    shape = huggingface.read(GPT_OSS)
    asked = Question(shape, parse_target("h100:2x8"), 64, 4096, axes=AXES)
    with pytest.raises(ValueError, match="no family of this lab"):
        plan.confirm(plan.plan(asked), 1, compiler([])[0])


# --- Neighbouring questions


def test_the_smallest_machine_is_the_smallest():
    asked = question(size="70b", target="h100:8x8", batch=64)
    smallest = plan.smallest_machine(asked)
    assert smallest is not None
    assert plan.plan(dataclasses.replace(asked, target=smallest)).choices
    for target in sizes.machines(asked.target.chip):
        if target.chips < smallest.chips:
            smaller = dataclasses.replace(asked, target=target)
            assert sizes.lightest(smaller)[0] > smaller.limit_bytes


def test_what_fits_nowhere_says_by_how_much():
    said = sizes.too_large(question(size="70b", target="tpu-v5e:2x2", batch=64))
    assert "more than the" in said
    assert "the smallest machine that would do is tpu-v5e:" in said
    # Of one slice none does, of several one.
    said = sizes.too_large(question(size="405b", target="tpu-v5e:4x4", batch=64))
    assert "tpu-v5e:16x16*2" in said


def test_a_machine_that_fits_with_state_on_the_host_is_one_that_fits():
    asked = question(size="70b", target="h100:8x8", batch=64)
    smallest = plan.smallest_machine(asked)
    assert smallest is not None and smallest.text == "h100:1x8"
    held = plan.plan(dataclasses.replace(asked, target=smallest)).choices
    assert held and all(choice.host for choice in held)


def test_a_budget_too_small_says_what_would_do():
    asked = question(target="h100:2x8", batch=64)
    said = sizes.too_few_hours(asked, 1e12)
    hours = float(re.search(r"takes ([\d,]+)", said)[1].replace(",", ""))
    assert not plan.for_budget(asked, 0.9 * hours, 1e12)
    assert plan.for_budget(asked, 1.01 * hours, 1e12)


def test_the_largest_batch_fits_and_no_larger_does():
    asked = question(target="tpu-v5p:2x2x4", axes=AXES)
    batch, layout = plan.largest_batch(asked)
    assert batch > 0
    held = dataclasses.replace(asked, batch=batch)
    priced = rank.rank(held)
    whole = law.microbatches(held, priced.candidates.table) == 1
    fitting = np.flatnonzero(priced.fits & whole)
    assert layout in {words.layout(priced, index) for index in fitting}
    double = dataclasses.replace(asked, batch=2 * batch)
    larger = candidates(double)
    at_once = np.flatnonzero(law.microbatches(double, larger.table) == 1)
    assert len(at_once)
    needs = memory(rank.as_points(double, larger.take(at_once))).hbm_bytes
    assert needs.min() > asked.limit_bytes


def test_a_budget_goes_where_tokens_are_cheapest():
    asked = question(size="1b", target="h100:8x8", batch=256, length=2048)
    most = plan.for_budget(asked, 1000)
    assert len(most) > 3
    tokens_ = [best.tokens for best in most]
    assert tokens_ == sorted(tokens_, reverse=True)
    assert all(best.chip_hours == pytest.approx(1000) for best in most)
    target = tokens_[0] / 3
    reached = plan.for_budget(asked, 1000, target)
    assert all(best.chip_hours <= 1000 for best in reached)
    hours = [best.hours for best in reached]
    assert hours == sorted(hours)
    assert plan.for_budget(asked, 1, tokens_[0]) == []
    with pytest.raises(ValueError, match="chip_hours"):
        plan.for_budget(asked, 0)


# --- Models from elsewhere


MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32768,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "sliding_window": 131072,
    "use_sliding_window": False,
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
}
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
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12}
GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 256000,
    "sliding_window": 4096,
}
GEMMA = GEMMA2 | {
    "model_type": "gemma",
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "intermediate_size": 24576,
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "intermediate_size": 6912,
    "vocab_size": 262144,
    "sliding_window": 512,
}
PHI3 = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 8192,
    "vocab_size": 32064,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "sliding_window": 128,
}


@pytest.mark.parametrize(
    ("config", "params", "active"),
    [
        # As published with the weights (safetensors index) of each.
        (LLAMA, 8_030_261_248, 8_030_261_248),
        (MIXTRAL, 46_702_792_704, 12_879_925_248),
        (QWEN2, 7_615_616_512, 7_615_616_512),
        (QWEN3_MOE, 30_532_122_624, 3_353_032_704),
        (DEEPSEEK, 671_026_419_200, 37_552_297_472),
        (GPT2 | {"vocab_size": 50257, "n_positions": 1024}, 124_439_808, 124_439_808),
        (GEMMA, 8_537_680_896, 8_537_680_896),
        (GEMMA2, 9_241_705_984, 9_241_705_984),
        (GEMMA3, 999_885_952, 999_885_952),
        (PHI3, 3_821_079_552, 3_821_079_552),
        (GPT_OSS, 20_914_757_184, 4_187_440_704),
    ],
)
def test_parameters_of_published_models(config, params, active):
    shape = huggingface.read(config)
    assert (shape.params, shape.active_params) == (params, active)


@pytest.mark.parametrize(
    ("config", "window", "share"),
    [
        (GEMMA, 0, 0),
        (GEMMA2, 4096, 1 / 2),
        (GEMMA3, 512, 22 / 26),
        (GPT_OSS, 128, 1 / 2),
        (GPT_OSS | {"layer_types": ["sliding_attention"] * 24}, 128, 1),
        (QWEN2, 0, 0),
    ],
)
def test_local_layers(config, window, share):
    shape = huggingface.read(config)
    assert (shape.window, shape.window_share) == (window, pytest.approx(share))


def test_a_type_by_its_class_and_a_text_model_inside():
    plain = {k: v for k, v in DEEPSEEK.items() if k != "model_type"}
    named = huggingface.read(plain | {"architectures": ["DeepseekV3ForCausalLM"]})
    assert named == huggingface.read(DEEPSEEK)
    text = {"model_type": "gemma3", "text_config": GEMMA3, "vision_config": {}}
    assert huggingface.read(text).params == huggingface.read(GEMMA3).params


QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
}
GEMMA3_27B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}
DEEPSEEK_V2_LITE = DEEPSEEK | {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "vocab_size": 102400,
    "n_group": 1,
    "topk_group": 1,
    "aux_loss_alpha": 0.001,
}
LLAMA31 = LLAMA | {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}


@pytest.mark.parametrize(
    ("config", "family", "size"),
    [
        (LLAMA31, "llama", "8b"),
        (MIXTRAL | {"router_aux_loss_coef": 0.02}, "mixtral", "8x7b"),
        (QWEN3, "qwen3", "0.6b"),
        (
            QWEN3_MOE
            | {"norm_topk_prob": True, "max_position_embeddings": 40960}
            | {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}},
            "qwen3_moe",
            "30b-a3b",
        ),
        (GEMMA3_27B, "gemma3", "27b"),
        (DEEPSEEK, "deepseek", "v3"),
        (DEEPSEEK_V2_LITE | {"max_position_embeddings": 4096}, "deepseek", "v2-lite"),
    ],
)
def test_a_config_that_is_a_family_of_ours_can_be_compiled(
    tmp_path, config, family, size
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    shape = plan.read(path)
    assert shape.config == models.size(family, size)
    assert plan.of_config(shape.config).params == shape.params


@pytest.mark.parametrize(
    "config",
    [
        GPT_OSS,
        QWEN2,
        QWEN3 | {"attention_bias": True},
        LLAMA | {"mlp_bias": True},
        GEMMA3 | {"final_logit_softcapping": 30.0},
        GEMMA3 | {"layer_types": ["full_attention", *["sliding_attention"] * 25]},
        DEEPSEEK | {"n_shared_experts": 0},
        DEEPSEEK_V2_LITE | {"n_group": 8, "topk_group": 3},
    ],
)
def test_what_is_no_family_of_ours_is_predicted_alone(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert plan.read(path).config is None


def test_a_familys_fields(tmp_path):
    path = tmp_path / "mine.json"
    fields = {"L": 4, "D": 256, "N": 8, "K": 4, "H": 32, "F": 512, "V": 1024}
    path.write_text(json.dumps({"family": "llama", **fields}))
    assert plan.read(path).config.F == 512
    path.write_text(json.dumps({"family": "llama", "size": "8b", "L": 2}))
    assert plan.read(path).layers == 2


def test_a_familys_fields_are_those_of_a_record(tmp_path):
    path = tmp_path / "mine.json"
    fields = {"routing": {"top_k": 1}, "mask": {"window": 4096, "every": 4}}
    path.write_text(json.dumps({"family": "mixtral", "size": "8x7b", **fields}))
    assert plan.read(path).top_k == 1 and plan.read(path).window_share == 0.75


def test_a_model_that_cannot_see_or_route_so_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no target in length=8192"):
        plan.ask(mask="prefix=9000", length=8192)
    path = tmp_path / "mine.json"
    fields = {"family": "mixtral", "size": "8x7b", "routing": {"top_k": 9}}
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="use 1 to 8"):
        plan.ask(model=path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"family": "lama"}', "did you mean llama"),
        ('{"family": "llama", "LL": 3}', "unknown field"),
        ('{"family": "llama", "L": 3}', "missing"),
        ('{"model_type": "lama"}', "did you mean llama"),
        ('{"model_type": "llama"}', "no hidden_size"),
        ('{"family": "llama", "L": 3}', "missing of llama: D, N, K, H, F, V"),
        ('{"family": "llama", "size": "8b", "L": "3"}', "L='3' must be a whole number"),
        ('{"family": "llama", "size": "8b", "L": -1}', "L=-1 must be a whole number"),
        ('{"family": "llama", "size": "8b", "K": 5}', "N=32 does not divide into 5"),
        ('{"family": "llama", "size": "8b", "tied": "yes"}', "tied='yes' must be true"),
        ('{"family": "llama", "size": "8b", "rope_base": "a"}', "must be a number"),
        ('{"family": "llama", "size": "8b", "mask": "top=4"}', "hold its fields"),
        ('{"family": "llama", "size": "8b", "mask": {"windw": 3}}', "mean window"),
        ('{"family": "llama", "size": "8b", "rope_base": NaN}', "nan must be a number"),
        (
            '{"family": "llama", "size": "8b", "mask": {"window": "3"}}',
            "window='3' must",
        ),
        ('{"family": "llama", "size": "8b", "mask": {"blocks": 3}}', "hold its fields"),
        (
            '{"family": "llama", "size": "8b", "mask": {"blocks": {"size": 8}}}',
            "'seen'",
        ),
        (
            '{"family": "mixtral", "size": "8x7b", "routing": {"top_k": 1.5}}',
            "=1.5 must",
        ),
        ('{"family": "mixtral", "size": "8x7b", "routing": {"gate": 1}}', "be a word"),
        ('{"family": "gemma3", "size": "1b", "period": 0}', "period=0 must be"),
        ('{"family": "deepseek", "size": "v2-lite", "dense": 99}', "dense=99 of L=27"),
        (json.dumps(LLAMA | {"hidden_size": "4096"}), "hidden_size='4096' must be"),
        (json.dumps(LLAMA | {"num_hidden_layers": 0}), "num_hidden_layers=0 must be"),
        (json.dumps(LLAMA | {"hidden_size": 4100}), "hidden_size=4100 does not divide"),
        (json.dumps(DEEPSEEK | {"v_head_dim": None}), "no v_head_dim in this"),
    ],
)
def test_a_model_file_that_cannot_be_read(tmp_path, text, said):
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as raised:
        plan.read(path)
    assert str(path) in str(raised.value)


# --- Flags of other trainers


def choice_of(asked, **wanted):
    """The fastest candidate with these columns."""
    priced = rank.rank(asked)
    for name, value in wanted.items():
        priced.fits[:] &= priced.candidates.table[name] == value
    from scaling_lab.plan.answer import answered

    return answered(priced, 1).choices[0]


def test_unequal_stages_are_named():
    asked = question(size="405b", target="h100:64x8", batch=512)
    choice = choice_of(asked, stage=16, pieces=1)
    for tool, said in (("maxtext", "pad to 128 layers"), ("megatron", "-layout")):
        notes = " ".join(emit.flags(tool, asked, choice).unmapped)
        assert "126 layers over 16 unequal parts" in notes and said in notes


@pytest.mark.parametrize(
    ("target", "exchanged"), [("h100:8x8", True), ("tpu-v5p:4x4x4", False)]
)
def test_long_rows_go_to_the_kernel_that_takes_them(target, exchanged):
    """cuDNN's takes whole rows; a TPU's takes parts of them too, and moves less."""
    asked = question(target=target, batch=8, length=131_072, axes=AXES)
    first = plan.plan(asked, top=1).choices[0]
    assert first.mesh["context"] > 1
    assert ("+ulysses" in first.layout) == exchanged


def test_positions_for_heads_are_named():
    """By what does it, and among what the others cannot do."""
    asked = question(size="70b", target="h100:8x8", batch=64, length=8192)
    choice = choice_of(asked, context=4, ulysses=1, stage=1)
    assert "context=4" in choice.layout and choice.layout.endswith("+ulysses")
    told = {tool: emit.flags(tool, asked, choice) for tool in emit.tools()}
    assert told["megatron"].values["cp-comm-type"] == "a2a"
    for tool in ("maxtext", "torchtitan"):
        assert any("positions for heads" in note for note in told[tool].unmapped)
    assert choice.trained and plan.config_of(asked, choice).layout.bind


def test_there_are_three_tools():
    assert emit.tools() == ("maxtext", "megatron", "torchtitan")
    asked = question()
    with pytest.raises(ValueError, match="did you mean megatron"):
        emit.flags("megatron-lm", asked, plan.plan(asked, top=1).choices[0])


@pytest.mark.parametrize("tool", emit.tools())
def test_flags_multiply_to_the_machine(tool):
    asked = question(size="70b", target="h100:8x8", batch=512, length=8192)
    for choice in plan.plan(asked, top=40).choices:
        values = emit.flags(tool, asked, choice).values
        assert _devices(tool, values, choice) == 64
        assert _sequences(tool, values, choice) == 512


def _devices(tool, values, choice):
    if tool == "maxtext":
        return math.prod(
            value for name, value in values.items() if name.endswith("_parallelism")
        )
    if tool == "torchtitan":
        degrees = [v for n, v in values.items() if n.endswith("_degree")]
        return math.prod(degrees)
    sizes_ = ("tensor", "pipeline")
    model = math.prod(values[f"{name}-model-parallel-size"] for name in sizes_)
    rest = choice.mesh.get("data", 1) * choice.mesh.get("fsdp", 1)
    return model * values["context-parallel-size"] * rest


def _sequences(tool, values, choice):
    if tool == "maxtext":
        steps = values.get("gradient_accumulation_steps", 1)
        return values["per_device_batch_size"] * 64 * steps
    if tool == "torchtitan":
        return values["training.global_batch_size"]
    return values["global-batch-size"]


def test_what_cannot_be_said_is_named():
    asked = question(size="70b", target="h100:8x8", batch=512, length=8192)
    zero_bubble = choice_of(asked, schedule=3)
    for tool in emit.tools():
        said = " ".join(emit.flags(tool, asked, zero_bubble).unmapped)
        assert "zero_bubble" in said or "ZB-H1" in said
    whole = choice_of(asked, zero=1, fsdp=1)
    assert emit.flags("megatron", asked, whole).values["use-distributed-optimizer"]
    titan = emit.flags("torchtitan", asked, whole)
    assert any("ZeRO-1" in said for said in titan.unmapped)
    assert "not mapped" in titan.text()


@pytest.mark.parametrize("tool", emit.tools())
def test_what_another_trainer_has_not_is_not_handed_out(tool):
    """ZeRO-2 beside fsdp, and without it 108 to 139 GB on a device of 81."""
    asked = question(size="8b", target="h100:4x8", batch=512, length=8192)
    found = plan.plan(asked, top=12)
    first = found.choices[0]
    assert first.mesh == {"data": 16, "fsdp": 2} and first.zero == 2
    told = emit.best(tool, found)
    assert not told.refused and told.instead_of.startswith(first.layout)
    assert f"cannot be said to {tool}: " in told.instead_of
    assert " of 80.7 GB a device. The best that can is " in told.instead_of
    assert told.instead_of in told.text() and told.to_json()["instead_of"]
    fifth = emit.best(tool, found, choose=5)
    assert found.choices[4].layout == "fsdp=32" and fifth.instead_of is None


def test_what_cannot_be_said_and_fit_is_refused():
    asked = question(
        size="8b", target="h100:1x8", batch=64, length=8192, axes=("data", "context")
    )
    found = plan.plan(asked, top=3)
    said = r"zero2.* maxtext: ZeRO-2.*needs 135.1 GB of 80.7 GB.* allow more --axes"
    with pytest.raises(ValueError, match=said):
        emit.best("maxtext", found)
    assert emit.best("torchtitan", found).instead_of is None


def test_what_the_compiler_refused_is_not_handed_on():
    found = plan.plan(question(size="8b", target="h100:4x8", batch=64), top=3)
    refused = dataclasses.replace(
        found.choices[0], confirmed=False, reason="memory: too large by a hair"
    )
    found = dataclasses.replace(found, choices=(refused, *found.choices[1:]))
    told = emit.best("megatron", found)
    assert "too large by a hair" in told.instead_of


def test_flags_that_keep_more_are_counted_again():
    """Another trainer's schedule and remat fill memory in other ways."""
    from scaling_lab.plan.emit._fitting import needed

    asked = question(size="70b", target="h100:8x8", batch=512, length=8192)
    priced = rank.rank(asked)
    piped = choice_of(asked, stage=8, schedule=0, policy=1, zero=3, data=1)
    need = {t: needed(priced, piped, emit.flags(t, asked, piped)) for t in emit.tools()}
    assert need["maxtext"] > need["torchtitan"] > piped.peak_bytes
    assert need["megatron"] > piped.peak_bytes


def test_maxtext_spans_slices_with_data():
    asked = question(target="tpu-v6e:16x16*2", batch=512)
    choice = choice_of(asked, data=2, fsdp=256)
    values = emit.flags("maxtext", asked, choice).values
    assert values["dcn_data_parallelism"] == 2
    assert values["ici_data_parallelism"] == 1
    assert values["ici_fsdp_parallelism"] == 256


def test_megatron_lines_are_words():
    asked = question(size="70b", target="h100:8x8", batch=512, length=8192)
    lines = emit.flags("megatron", asked, choice_of(asked, tensor=8)).lines()
    assert "--tensor-model-parallel-size 8" in lines
    assert "--swiglu" in lines
    assert "--sequence-parallel" in lines


def test_words_make_a_question():
    found = lab.best_layouts(
        "llama",
        "1b",
        "h100:1x8",
        batch_tokens="256K",
        length=2048,
        axes="data, fsdp",
        node_gbps=None,
        top=3,
    )
    assert found.question.axes == ("data", "fsdp")
    assert found.question.batch == 128
    assert len(found.choices) == 3
    with pytest.raises(ValueError, match="did you mean axes"):
        lab.best_layouts("llama", "1b", "h100:1x8", axess="data")


def test_policies_of_a_layout_get_lighter_and_stay_within_memory():
    asked = question("llama", "70b", "h100:32x8", batch=512, length=4096, axes=AXES)
    found = plan.plan(asked)
    choice = next(c for c in found.choices if c.trained)
    refined = plan.refine.policies(found, choice, 3)
    assert {each.microbatches for each in refined} == {1, 2}
    times = [each.step_seconds for each in refined]
    assert times == sorted(times)
    kinds = {}
    for each in refined:
        way = "offload" if "offload" in each.remat else each.remat.partition(":")[0]
        way = "whole" if way in ("none", "full") else way
        kinds.setdefault((each.microbatches, each.once_in, way), []).append(each)
    assert (1, 0, "save") in kinds and (2, 0, "save") in kinds
    for own in kinds.values():
        sizes = [each.hbm_bytes for each in own]
        assert sizes[0] <= asked.limit_bytes and len(own) <= 3
        assert all(b <= 0.9 * a for a, b in itertools.pairwise(sizes))
        config = own[0].of(plan.config_of(asked, choice))
        check_legal(config)
        run = points_of([config])
        held = memory(run).hbm_bytes[0]
        assert held == pytest.approx(sizes[0], rel=1e-6)


def test_the_host_is_asked_where_memory_is_short_and_its_link_fast():
    """Then all that does not fit is offloaded before anything is done again. Gathered
    weights are kept where they fit."""
    asked = question(
        "llama", "70b", "h100:32x8", batch=512, length=4096, axes=NO_STAGES
    )
    small = dataclasses.replace(asked, batch=256, length=2048)
    chip = dataclasses.replace(asked.target.chip, host_bytes_per_second=4.5e11)
    near = dataclasses.replace(asked.target, chip=chip)
    names = [name for name in plan.refine.KEPT if name != "attention/attend"]
    for each, host in (
        (asked, False),
        (dataclasses.replace(asked, target=near), True),
        (dataclasses.replace(small, target=near), False),
    ):
        found = plan.plan(each, top=10_000)
        choice = next(c for c in found.choices if set(c.mesh) == {"fsdp"})
        refined = [
            one
            for one in plan.refine.policies(found, choice, 1)
            if one.microbatches == 1
        ]
        away = [one for one in refined if "offload" in one.remat]
        assert bool(away) == host
        if host:
            assert away[0] == refined[0]
            assert all(name in away[0].remat for name in names)
    eight = question("llama", "8b", "h100:8x8", batch=128, length=4096, axes=NO_STAGES)
    found = plan.plan(eight, top=10_000)
    choice = next(c for c in found.choices if set(c.mesh) == {"fsdp"})
    once = next(one for one in plan.refine.policies(found, choice) if one.once_in == 1)
    config = once.of(plan.config_of(eight, choice))
    check_legal(config)
    assert config.layout.gather == "step" and "gather_once" in config.layout.name


def test_some_layers_keep_what_they_gathered_where_not_all_can():
    """As many as fit, in groups that the layers divide into."""
    asked = question("llama", "8b", "h100:8x8", batch=128, axes=("fsdp",))
    found = plan.plan(asked)
    best = {
        one.once_in: one
        for one in plan.refine.policies(found, found.choices[0], 10)
        if (one.microbatches, one.remat) == (1, "full")
    }
    order = [best[layers] for layers in (0, 8, 4, 2, 1)]
    seconds = [one.step_seconds for one in order]
    held = [one.hbm_bytes for one in order]
    assert seconds == sorted(seconds, reverse=True) and held == sorted(held)
    every = 2 * 6.98e9  # bytes of all layers' weights in 16 bits
    # Of 32: kept ones, and a group in use.
    layers = [2, 4 + 8, 8 + 4, 16 + 2, 32]
    for one, two in itertools.pairwise(zip(held, layers, strict=True)):
        assert two[0] - one[0] == pytest.approx(
            every * (two[1] - one[1]) / 32, rel=0.01, abs=1
        )
    chip = dataclasses.replace(asked.target.chip, usable_hbm_bytes=40_000_000_000)
    tight = dataclasses.replace(
        asked, target=dataclasses.replace(asked.target, chip=chip)
    )
    first = plan.refined(plan.plan(tight)).choices[0]
    assert first.layout == "fsdp=64+gather_once=4"
    assert first.peak_bytes <= tight.limit_bytes
    config = plan.config_of(tight, first)
    check_legal(config)
    assert memory(points_of([config])).hbm_bytes[0] == pytest.approx(
        first.peak_bytes, rel=1e-6
    )
    told = [emit.best(tool, plan.refined(plan.plan(tight))) for tool in emit.tools()]
    assert all("fsdp=64+gather_once=4" in each.instead_of for each in told)


@pytest.mark.parametrize(
    ("family", "size", "axes", "layers"),
    [
        ("llama", "8b", ("fsdp",), {0, 1, 2, 4, 8}),
        ("llama", "405b", ("fsdp", "tensor"), {0, 1, 2}),  # of 126 layers
        ("deepseek", "v3", ("fsdp", "expert"), {0, 1}),  # 3 and 58, and one more
        ("llama", "8b", ("fsdp", "stage"), {0, 1}),  # a stage keeps of all or none
    ],
)
def test_groups_of_layers_are_whole(family, size, axes, layers):
    asked = question(family, size, "h100:64x8", batch=1024, length=4096, axes=axes)
    found = plan.plan(asked, top=1000)
    wanted = {axis for axis in axes if axis == "stage"}
    choice = next(
        c
        for c in found.choices
        if c.mesh.get("fsdp", 1) > 1 and c.zero == 3 and wanted <= set(c.mesh)
    )
    run = found.ranked.points.take(choice.index)
    assert set(plan.refine._keepers(found, choice, run)) == layers


@pytest.mark.parametrize(
    ("family", "size", "target", "changes", "word"),
    [
        ("llama", "8b", "h100:8x8", {"batch": 128, "axes": NO_STAGES}, "+gather_once"),
        ("mixtral", "8x7b", "h100:16x8", {"batch": 512, "axes": NO_STAGES}, "save:"),
        ("llama", "70b", "h100:4x8", {"batch": 64, "axes": ("fsdp", "context")}, ""),
        ("llama", "8b", "h100:4x8", {"axes": ("stage", "fsdp")}, ""),
    ],
)
def test_choices_are_shown_under_their_best_policies(
    family, size, target, changes, word
):
    """Faster than their own, within memory, and priced as runs of them are."""
    asked = question(family, size, target, **changes)
    before = plan.plan(asked, top=12)
    found = plan.refined(before)
    own = {tuple(each.mesh.items()): each for each in before.choices}
    assert {tuple(each.mesh.items()) for each in found.choices} == set(own)
    seconds = [each.step_seconds for each in found.choices]
    assert seconds == sorted(seconds)
    better = [each for each in found.choices if each.refined]
    assert better and word in better[0].layout + better[0].remat
    for each in found.choices:
        uniform = own[tuple(each.mesh.items())]
        assert each.refined or each == dataclasses.replace(
            uniform, tied=each.tied, reason=each.reason
        )
        assert not each.refined or each.step_seconds < uniform.step_seconds
        assert each.peak_bytes <= asked.limit_bytes
        assert sum(each.seconds_by.values()) == pytest.approx(each.step_seconds)
        assert each.step_seconds_low < each.step_seconds < each.step_seconds_high
    trained = [each for each in better if each.trained]
    run = points_of([plan.config_of(asked, each) for each in trained])
    priced = predict(run)
    np.testing.assert_allclose(
        priced.step_seconds, [each.step_seconds for each in trained], rtol=1e-3
    )
    np.testing.assert_allclose(
        priced.hbm_bytes, [each.peak_bytes for each in trained], rtol=1e-6
    )


def test_a_policy_without_attentions_kernel_makes_its_scores_again():
    from scaling_lab.plan.answer import answered

    odd = 4104  # of parts so long no kernel takes a block
    axes = ("fsdp", "context")
    asked = question("llama", "8b", "h100:1x8", batch=8, length=odd, axes=axes)
    ranked = rank.rank(asked)
    table = ranked.candidates.table
    ranked.fits[:] &= (table["context"] == 2) & (table["ulysses"] == 0)
    found = answered(ranked, 1)
    assert not ranked.points.flash[found.choices[0].index]
    kept = [
        each
        for each in plan.refine.policies(found, found.choices[0])
        if "attend" in each.remat
    ]
    runs = [each.of(plan.config_of(asked, found.choices[0])) for each in kept]
    np.testing.assert_allclose(
        predict(points_of(runs)).step_seconds,
        [each.step_seconds for each in kept],
        rtol=1e-4,
    )


def test_what_is_offloaded_is_shown_and_no_chip_without_a_host_is_asked():
    asked = question(
        "llama", "70b", "h100:32x8", batch=512, length=4096, axes=("fsdp",)
    )
    chip = dataclasses.replace(asked.target.chip, host_bytes_per_second=4.5e11)
    near = dataclasses.replace(asked.target, chip=chip)
    (here,) = plan.refined(plan.plan(asked)).choices
    (away,) = plan.refined(plan.plan(dataclasses.replace(asked, target=near))).choices
    assert "offload" not in here.remat and ";offload:" in away.remat
    assert away.step_seconds < here.step_seconds and away.to_json()["refined"]
    assert words.remat("save:attention/key,ffn/up;offload:ffn/gate") == (
        "save k+up; offload gate"
    )
    assert "offload" in words.remat(away.remat)


def test_state_on_the_host_stays_there_when_a_choice_is_refined():
    asked = question(
        "llama", "70b", "h100:2x8", batch=16, length=4096, axes=("data", "fsdp")
    )
    before = plan.plan(asked, top=3)
    found = plan.refined(before)
    (own, *_), (choice, *_) = before.choices, found.choices
    assert own.host and choice.host
    assert choice.bytes_by["optimizer_bytes"] == 0
    assert choice.step_seconds <= own.step_seconds
    waits = choice.seconds_by["optimizer"]
    assert waits == pytest.approx(own.seconds_by["optimizer"], rel=0.05)


REFINED = {"family": "mixtral", "size": "8x7b", "target": "h100:16x8", "batch": 512}


def test_the_compiler_is_asked_about_refined_policies():
    compile_run, asked = compiler([2**30, 2**30], [2.0, 3.0])
    before = plan.refined(plan.plan(question(**REFINED, axes=NO_STAGES), top=4))
    found = plan.confirm(before, 1, compile_run)
    first = before.choices[0]
    assert first.refined and {config.remat for config in asked} == {first.remat}
    assert asked[0].layout.name == first.layout
    assert found.choices[0].confirmed and found.choices[0].refined


def test_a_refused_policy_leaves_its_layout_the_uniform_one():
    """Nor is another asked about that was predicted to be as heavy."""
    uniform = plan.plan(question(**REFINED, axes=NO_STAGES), top=3)
    before = plan.refined(uniform)
    heavy = before.choices[0]
    left = [c for c in before.choices if c.peak_bytes < heavy.peak_bytes]
    compile_run, asked = compiler([None] * (1 + len(left)) + [2**30] * 2)
    found = plan.confirm(before, 1, compile_run)
    assert [config.remat for config in asked[: 1 + len(left)]] == [
        each.remat for each in (heavy, *left)
    ]
    first = found.choices[0]
    assert first.confirmed and not first.refined
    assert (first.index, first.remat) == (
        uniform.choices[0].index,
        uniform.choices[0].remat,
    )
    assert [c.confirmed for c in found.choices[-1 - len(left) :]] == [False] * (
        1 + len(left)
    )


@pytest.mark.parametrize("tool", emit.tools())
def test_a_policy_that_another_trainer_has_not_falls_back(tool):
    """MaxText keeps tensors by name, torchtitan gathered weights, Megatron neither."""
    asked = question("llama", "8b", "h100:8x8", batch=128, axes=("fsdp",))
    found = plan.refined(plan.plan(asked))
    assert found.choices[0].layout == "fsdp=64+gather_once"
    told = emit.best(tool, found)
    assert not told.refused
    if tool == "torchtitan":
        assert told.values["parallelism.fsdp_reshard_after_forward"] == "never"
    else:
        assert "gathered weights kept" in told.instead_of
        assert "The best that can is fsdp=64, " in told.instead_of
    found = plan.refined(plan.plan(question(**REFINED, axes=("fsdp",))))
    choice, told = found.choices[0], emit.best(tool, found)
    assert choice.refined and "ffn/experts/down" in choice.remat
    if tool == "maxtext":
        assert told.instead_of is None and told.values["moe_mlpwo"] == "device"
        away = dataclasses.replace(choice, remat="save:ffn/up;offload:ffn/gate")
        values = emit.flags(tool, asked, away).values
        assert (values["mlpwi_0"], values["mlpwi_1"]) == ("offload", "device")
        sent = dataclasses.replace(choice, remat="save:ffn/experts/sent")
        assert emit.flags(tool, asked, sent).refused
    else:
        assert "verb by verb" in told.instead_of


def test_a_choice_with_experts_is_a_layout_of_as_many_devices():
    asked = question("mixtral", "8x7b", "h100:4x8", batch=64, length=4096, axes=AXES)
    found = plan.plan(asked, top=100)
    routed = [choice for choice in found.choices if choice.mesh.get("expert", 1) > 1]
    assert len(routed) > 10
    for choice in routed:
        assert layouts.parse(choice.layout).devices == 32
    trained = [choice for choice in routed if choice.trained]
    assert trained
    for choice in trained[:10]:
        config = plan.config_of(asked, choice)
        validate(config)
        run = memory(points_of([config]))
        assert run.hbm_bytes[0] == pytest.approx(choice.peak_bytes, rel=1e-6)
