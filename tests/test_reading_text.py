"""What is read from scheduled modules, as the TPU and GPU compilers write them."""

import math

import pytest

from scaling_lab.compile import _flops, _module, _names, _shapes, links, live, price
from scaling_lab.compile import read as read_module
from scaling_lab.hardware import parse_target

V5P, MESH = "tpu-v5p:4x4x4", {"fsdp": 64}
CLOCK = 1.75e9


def module(*lines, others="", header=""):
    body = "".join(f"  {line}\n" for line in lines)
    return (
        f"HloModule written, is_scheduled=true{header}\n\n{others}\n"
        f"ENTRY %main (p: s32[]) -> s32[] {{\n{body}}}"
    )


def computation(name, *lines, after=""):
    body = "".join(f"  {line}\n" for line in lines)
    return f"%{name} (q: s32[]) -> s32[] {{\n{body}}}{after}\n"


def cycles(count):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


def fusion(name, operand, count, shape="bf16[8,128]{1,0}", op_name=""):
    traced = f', metadata={{op_name="{op_name}"}}' if op_name else ""
    return (
        f"%{name} = {shape} fusion(%{operand}), kind=kLoop, calls=%f{traced}, "
        f"{cycles(count)}"
    )


EMPTY = computation("f", "ROOT %q = bf16[8,128]{1,0} parameter(0)")
ARGUMENT = "%p = bf16[8,128]{1,0} parameter(0)"
GROUPS = "replica_groups=[1,64]<=[64], use_global_device_ids=true"
SHARD, WHOLE = "bf16[1024,4096]{1,0}", "bf16[65536,4096]{1,0}"
WHOLE_BYTES = 2 * 65536 * 4096
BIG = f"%g = {SHARD} parameter(1)"


def gather(name="s", channel=1, operand="g"):
    return (
        f"%{name} = ({SHARD}, {WHOLE}) all-gather-start(%{operand}), "
        f"channel_id={channel}, {GROUPS}, dimensions={{0}}",
        f"%{name}d = {WHOLE} all-gather-done(%{name})",
    )


def alone(size=WHOLE_BYTES, mesh=MESH, target=V5P, kind="all-gather"):
    found = parse_target(target)
    facts = price.physics(found.chip), price.efficiencies(found.chip)
    link = links.of_axes(mesh, found)[next(iter(mesh))]
    return links.seconds(kind, size, link, facts)


# --- Time


def loop(body, trips=3):
    others = EMPTY + computation(
        "body",
        "%s = (s32[], bf16[8,128]) parameter(0)",
        "%i = s32[] get-tuple-element(%s), index=0",
        "%x = bf16[8,128] get-tuple-element(%s), index=1",
        body,
        "%one = s32[] constant(1)",
        "%n = s32[] add(%i, %one)",
        "ROOT %t = (s32[], bf16[8,128]) tuple(%n, %y)",
    )
    others += computation(
        "cond",
        "%s = (s32[], bf16[8,128]) parameter(0)",
        "%i = s32[] get-tuple-element(%s), index=0",
        f"%b = s32[] constant({trips})",
        "ROOT %c = pred[] compare(%i, %b), direction=LT",
    )
    return module(
        ARGUMENT,
        fusion("first", "p", 1000),
        "%zero = s32[] constant(0)",
        "%t = (s32[], bf16[8,128]) tuple(%zero, %first)",
        "ROOT %w = (s32[], bf16[8,128]) while(%t), condition=%cond, body=%body",
        others=others,
    )


def test_estimated_cycles_are_summed_with_trips():
    found = read_module(loop(fusion("y", "x", 2000), trips=3), MESH, V5P)
    assert found["scheduled_seconds"] == pytest.approx(7000 / CLOCK)
    assert found["step_seconds"] == (
        found["scheduled_seconds"] + found["modelled_seconds"]
    )


@pytest.mark.parametrize("sentinel", [2**63 - 1, 10**12, -1])
def test_a_sentinel_is_no_estimate_and_is_priced(sentinel):
    shape = "bf16[4096,4096]{1,0}"
    text = module(
        f"%p = {shape} parameter(0)", fusion("a", "p", sentinel, shape), others=EMPTY
    )
    found = read_module(text, MESH, V5P)
    assert found["scheduled_seconds"] is None
    moved = 2 * 2 * 4096 * 4096
    rate = 2.765e12 * price.FITTED["Google"].memory
    assert found["modelled_seconds"] == pytest.approx(moved / rate)


def test_the_longest_branch_of_a_conditional_counts():
    others = EMPTY + "".join(
        computation(
            name,
            "%x = bf16[8,128]{1,0} parameter(0)",
            fusion("y", "x", count).replace("%y", "ROOT %y", 1),
        )
        for name, count in (("short", 100), ("long", 5000))
    )
    text = module(
        ARGUMENT,
        "%i = s32[] constant(0)",
        "ROOT %c = bf16[8,128] conditional(%i, %p, %p), "
        "branch_computations={%short, %long}",
        others=others,
    )
    found = read_module(text, MESH, V5P)
    assert found["scheduled_seconds"] == pytest.approx(5000 / CLOCK)


@pytest.mark.parametrize("count", [100, 10**9])
def test_a_started_collective_hides_behind_what_runs_meanwhile(count):
    start, done = gather()
    text = module(ARGUMENT, BIG, start, fusion("a", "p", count), done, others=EMPTY)
    found = read_module(text, MESH, V5P)
    compute, whole = count / CLOCK, alone()
    assert found["exposed_seconds"] == pytest.approx(max(0, whole - compute))
    assert found["hidden_seconds"] == pytest.approx(min(whole, compute))
    assert found["step_seconds"] == pytest.approx(max(whole, compute))
    (row,) = found["collectives"]
    assert row["overlapped"] and row["link"] == "ici" and row["bytes"] == WHOLE_BYTES
    assert row["seconds"] == pytest.approx(whole)


def test_a_synchronous_collective_is_exposed_whole():
    line = f"%s = {WHOLE} all-gather(%g), channel_id=1, {GROUPS}, dimensions={{0}}"
    text = module(ARGUMENT, BIG, line, fusion("a", "p", 10**9), others=EMPTY)
    found = read_module(text, MESH, V5P)
    assert found["exposed_seconds"] == pytest.approx(alone())
    assert found["hidden_seconds"] == 0 and not found["collectives"][0]["overlapped"]


def test_two_on_the_same_links_queue_and_others_do_not():
    mesh, shape = {"fsdp": 16, "tensor": 4}, "bf16[1024,4096]{1,0}"
    size = 2 * 1024 * 4096

    def line(name, groups):
        return (
            f"%{name} = ({shape}, {shape}) all-reduce-start(%g), channel_id=1, "
            f"replica_groups={groups}, use_global_device_ids=true, to_apply=%f",
            f"%{name}d = {shape} all-reduce-done(%{name})",
        )

    fsdp, tensor = "[4,16]<=[16,4]T(1,0)", "[16,4]<=[64]"
    times = {}
    for second in (fsdp, tensor):
        (a, ad), (b, bd) = line("a", fsdp), line("b", second)
        text = module(ARGUMENT, BIG, a, b, ad, bd, others=EMPTY)
        times[second] = read_module(text, mesh, V5P)["step_seconds"]
    one = alone(size, mesh, kind="all-reduce")
    other = alone(size, {"tensor": 4, "fsdp": 16}, kind="all-reduce")
    assert times[fsdp] == pytest.approx(2 * one)
    assert times[tensor] == pytest.approx(max(one, other))


def test_neighbours_pass_in_both_directions_at_once():
    def line(name, step):
        pairs = ",".join(f"{{{i},{(i + step) % 64}}}" for i in range(64))
        return (
            f"%{name} = ({SHARD}, {SHARD}) collective-permute-start(%g), "
            f"channel_id=1, source_target_pairs={{{pairs}}}",
            f"%{name}d = {SHARD} collective-permute-done(%{name})",
        )

    (a, ad), (b, bd), (c, cd) = line("a", 1), line("b", 63), line("c", 1)
    size = 2 * 1024 * 4096
    one = alone(size, kind="collective-permute")
    both = read_module(module(BIG, a, b, ad, bd), MESH, V5P)
    three = read_module(module(BIG, a, b, c, ad, bd, cd), MESH, V5P)
    assert both["step_seconds"] == pytest.approx(one)
    assert three["step_seconds"] == pytest.approx(2 * one)


def chained(target, operand, channel):
    return computation(
        target.lower() + str(channel),
        f"%q = {SHARD} parameter(0)",
        f"%g = {WHOLE} all-gather(%q), channel_id={channel}, {GROUPS}, "
        'dimensions={0}, frontend_attributes={chain_id="1"}',
        f"ROOT %c = {WHOLE} custom-call({operand}), "
        f'custom_call_target="AsyncCollective{target}"',
    )


def test_a_chain_of_fusions_is_one_overlapped_collective():
    step = computation(
        "step",
        f"%q = {SHARD} parameter(0)",
        f"ROOT %g = {WHOLE} all-gather(%q), channel_id=7, {GROUPS}, "
        'dimensions={0}, frontend_attributes={chain_id="1"}',
    )
    text = module(
        BIG,
        f"%s = {WHOLE} fusion(%g), kind=kCustom, calls=%start7",
        f"%m = {WHOLE} fusion(%g), kind=kOutput, calls=%step, {cycles(1000)}",
        f"ROOT %d = {WHOLE} fusion(%s), kind=kCustom, calls=%done7",
        others=chained("Start", "%g", 7) + step + chained("Done", "%q, %g", 7),
    )
    found = read_module(text, MESH, V5P)
    (row,) = found["collectives"]
    assert (row["count"], row["overlapped"]) == (1, True)
    assert found["hidden_seconds"] == pytest.approx(1000 / CLOCK)
    assert found["exposed_seconds"] == pytest.approx(alone() - 1000 / CLOCK)


def test_kernels_are_priced_from_what_they_say():
    kernel = (
        "%k = bf16[8,128]{1,0} custom-call(%p), "
        'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":'
        '{"cost_estimate":{"flops":"1000000000000","bytes_accessed":"7"}}}'
    )
    found = read_module(module(ARGUMENT, kernel), MESH, V5P)
    reached = price.FITTED["Google"].attention
    assert found["flops"] == 1e12
    assert found["modelled_seconds"] == pytest.approx(1e12 / (4.59e14 * reached))


def test_a_gpus_own_kernels_are_priced_from_what_they_say():
    """A tile's worth of rows, of a result with room for more."""
    kernel = (
        "%k = bf16[65536,512]{1,0} custom-call(%p), "
        'custom_call_target="__gpu$xla.gpu.triton", backend_config={grid_x = 4 : i32, '
        r'ir = "ML\EFR({\22elements\22: \229\22", serialized_metadata = '
        r'"{\22flops\22: \2268719476736\22, \22elements\22: \228388608\22}"}'
    )
    found = read_module(module(ARGUMENT, kernel), {"fsdp": 8}, "h100:1x8")
    assert found["flops"] == 68719476736
    reached = price.FITTED["NVIDIA"]
    depth = 4096 / (4096 + reached.matmul_depth)
    waves = 2 * 132 / (8388608 / (128 * 256))
    seconds = 68719476736 / (9.89e14 * reached.matmul * depth) * waves
    seconds += reached.launch_seconds
    assert found["modelled_seconds"] == pytest.approx(seconds, rel=1e-3)


@pytest.mark.parametrize(
    ("mask", "share"),
    [
        ('"mask_type":"CAUSAL","sliding_window_length": 0', 0.5),
        ('"mask_type":"CAUSAL","sliding_window_length": 1024', 7 / 32),
        ('"mask_type":"CAUSAL","sliding_window_length": 9000', 0.5),
        ('"mask_type":"NO_MASK"', 1.0),
    ],
)
@pytest.mark.parametrize(("name", "products"), [("", 2), ("Backward", 5)])
def test_cudnn_attention_is_counted_from_its_shapes(mask, share, name, products):
    q, k = "bf16[2,4096,32,128]{3,2,1,0}", "bf16[2,4096,8,128]{3,2,1,0}"
    text = module(
        f"%q = {q} parameter(0)",
        f"%k = {k} parameter(1)",
        f"%v = {k} parameter(2)",
        f"ROOT %a = ({q}, u8[0]{{0}}) custom-call(%q, %k, %v), "
        f'custom_call_target="__cudnn$fmhaSoftmax{name}", '
        f"backend_config={{{mask}}}",
    )
    found = read_module(text, {"fsdp": 8}, "h100:1x8")
    pairs = 2 * 4096 * 4096 * 32 * 128 * share
    assert found["flops"] == 2 * products * pairs
    assert found["scheduled_seconds"] is None
    rate = 9.89e14 * price.FITTED["NVIDIA"].attention
    assert found["step_seconds"] == pytest.approx(found["flops"] / rate, rel=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "attention/attend/flash_forward/pallas_call",
        "jit(f)/transpose(jvp(flash_of_keys))/pallas_call",
        "flash_of_queries/pallas_call",
    ],
)
def test_attention_in_a_kernel_of_our_own_is_priced_as_such(name):
    q = "bf16[2,4096,32,128]{3,2,1,0}"
    kernel = (
        f"ROOT %a = {q} custom-call({q} %arg.0), "
        'custom_call_target="__gpu$xla.gpu.triton", '
        f'metadata={{op_name="{name}"}}, '
        "backend_config={serialized_metadata = "
        r'"{\22flops\22: \22274877906944\22}"}'
    )
    found = read_module(
        module(f"%arg.0 = {q} parameter(0)", kernel), {"fsdp": 8}, "h100:1x8"
    )
    assert found["flops"] == 274877906944
    rate = 9.89e14 * price.FITTED["NVIDIA"].triton_attention
    assert found["step_seconds"] == pytest.approx(found["flops"] / rate, rel=0.01)


Q = "bf16[2,32,4096,128]{3,2,1,0}"
SCRATCH = "f32[2,512,128]{2,1,0}"


@pytest.mark.parametrize(
    ("kernel", "blocks", "results", "products"),
    [
        ("splash_mha_fwd_residuals", "", f"{SCRATCH}, {Q}, {Q}", 2),
        ("splash_mha_dq_no_residuals", "_dq", f"{SCRATCH}, {Q}", 3),
        ("splash_mha_dkv_no_residuals", "_dkv", f"{SCRATCH}, {Q}, {Q}", 4),
        (
            "splash_mha_dkv_no_residuals",
            "_dkv",
            f"{SCRATCH}, bf16[2,4,32,4096,128]{{4,3,2,1,0}}, {Q}, {Q}",
            5,
        ),
    ],
)
def test_splash_attention_is_counted_in_whole_blocks(kernel, blocks, results, products):
    """Of 8 x 4 blocks of 512 x 1024 pairs, 20 have one that is not masked."""
    said = f'{{\\"block_q{blocks}\\": 512, \\"block_kv{blocks}\\": 1024}}'
    lines = (
        "%m = s8[1,8,4]{2,1,0} constant({...})",
        *(f"%{name} = {Q} parameter({at})" for at, name in enumerate("qkv")),
        f"%a = ({results}) custom-call(%m, %m, %q, %k, %v), "
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
        f'"xprof_metadata":"{said}"\n'
        '}}, metadata={op_name="jit(s)/jvp(attention/attend)/shard_map/'
        f'vmap(static_sparsity)/jit(_splash)/{kernel}/{kernel}/pallas_call"}}',
    )
    found = read_module(module(*lines), MESH, V5P)
    pairs = 2 * 32 * 4096 * 4096 * 128
    assert found["flops"] == 2 * products * pairs * 20 / 32
    assert set(found["by_verb"]) == {"attention/attend"}
    reached = price.FITTED["Google"].attention
    assert found["step_seconds"] == pytest.approx(found["flops"] / (4.59e14 * reached))


def test_without_a_claimed_speed_there_are_no_seconds():
    text = module(ARGUMENT, fusion("a", "p", 100), others=EMPTY)
    for target in ("cpu:64", None):
        found = read_module(text, MESH, target)
        assert found["step_seconds"] is None and found["exposed_seconds"] is None
        assert found["flops"] == 0


# --- FLOPs


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "flops"),
    [
        (  # attention/query: the heads are places of a window
            "bf16[2,4096,4096,1]",
            "bf16[4096,32,128,1]",
            "bf16[2,4096,32,128]",
            "window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, "
            "dim_labels=0bf1_i1o0->0b1f",
            2 * 2 * 4096 * 4096 * 32 * 128,
        ),
        (  # attention/out: and here they are summed over
            "bf16[2,4096,32,128]",
            "bf16[32,128,4096,1]",
            "bf16[2,4096,4096,1]",
            "window={size=1x32}, dim_labels=0b1f_1io0->0bf1",
            2 * 2 * 4096 * 4096 * 32 * 128,
        ),
        (  # scores of 2 x 8 batches and 4 query heads a key head
            "bf16[2,4096,8,128,1]",
            "bf16[2,4096,8,4,128]",
            "f32[2,8,4096,4096,4]",
            "window={size=2x8x4 stride=1x7x1 pad=0_0x0_0x3_3 lhs_dilate=2x8x1 "
            "rhs_reversal=0x0x1}, dim_labels=0b1f2_0o12i->01bf2",
            2 * 2 * 32 * 4096 * 4096 * 128,
        ),
        (  # the same with the batch dilated otherwise
            "bf16[8,2048,2,128,1]",
            "bf16[8,2,128,4,2048]",
            "bf16[8,2,4,2048,2048]",
            "window={size=8x2x4 stride=8x2x1 pad=7_7x1_1x3_3 lhs_dilate=7x1x1 "
            "rhs_reversal=1x1x1}, dim_labels=0b1f2_01i2o->012fb",
            2 * 8 * 8 * 2048 * 2048 * 128,
        ),
        (
            "bf16[2,4096,4096]",
            "bf16[4096,14336,1]",
            "bf16[2,4096,14336]",
            "window={size=1}, dim_labels=0bf_io0->0bf",
            2 * 2 * 4096 * 4096 * 14336,
        ),
    ],
)
def test_flops_of_products_that_the_tpu_compiler_writes(
    left, right, out, attributes, flops
):
    text = module(
        f"%a = {left}{{0}} parameter(0)",
        f"%b = {right}{{0}} parameter(1)",
        f"ROOT %c = {out}{{0}} convolution(%a, %b), {attributes}",
    )
    made = _module.Module(text)
    assert _flops.Counter(made).of(made.entry, made.entry["c"]) == flops


def test_flops_of_fused_products_and_gemm_calls():
    others = computation(
        "f",
        "%a = f32[8,64] parameter(0)",
        "%b = f32[64,32] parameter(1)",
        "ROOT %c = f32[8,32] dot(%a, %b), lhs_contracting_dims={1}, "
        "rhs_contracting_dims={0}",
    )
    text = module(
        "%a = f32[8,64] parameter(0)",
        "%b = f32[64,32] parameter(1)",
        "%c = f32[8,32] fusion(%a, %b), kind=kOutput, calls=%f",
        "ROOT %d = (f32[8,32], s8[64]) custom-call(%a, %b), "
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
        others=others,
    )
    made = _module.Module(text)
    counter = _flops.Counter(made)
    for name in "cd":
        assert counter.of(made.entry, made.entry[name]) == 2 * 8 * 64 * 32


# --- Names


@pytest.mark.parametrize(
    ("op_name", "verb", "passed"),
    [
        (
            "jit(step)/jvp()/while/body/closed_call/ffn/up/BTD,DF->BTF/dot_general",
            "ffn/up",
            "forward",
        ),
        (
            "jit(s)/transpose(jvp())/while/body/checkpoint/attention/attend/shard_map/exp",
            "attention/attend",
            "backward",
        ),
        (
            "jit(s)/transpose(jvp())/checkpoint/rematted_computation/ffn/gate/convert",
            "ffn/gate",
            "recomputed",
        ),
        (
            "jit(s)/transpose(jvp())/while/body/jvp(ffn/gate)/BTD,DF->BTF/dot_general",
            "ffn/gate",
            "recomputed",
        ),
        (
            "jit(s)/transpose(jvp())/while/body/transpose(jvp(ffn/gate))/dot_general",
            "ffn/gate",
            "backward",
        ),
        ("jit(step)/transpose(jvp(head))/shard_map/while", "head", "backward"),
        (
            "jit(s)/jvp(attention/attend)/jit(_where)/select_n",
            "attention/attend",
            "forward",
        ),
        ("jit(step)/optimizer/mul", "optimizer", "update"),
        ("jit(step)/jvp()/while/body/closed_call/mul", "", "forward"),
        ("reduce_sum", "", "update"),
        ("", "", "update"),
    ],
)
def test_verbs_and_passes_of_traced_names(op_name, verb, passed):
    assert _names.verb_of(op_name) == verb
    assert _names.pass_of(op_name) == passed


@pytest.mark.parametrize(
    ("op_name", "names"),
    [
        ("jit(s)/a/(b/x:c/d(e)/y)", ("jit(s)/a/b/x", "jit(s)/a/c/d(e)/y")),
        ("jit(s)/a/x;jit(s)/b/y", ("jit(s)/a/x", "jit(s)/b/y")),
        ("jit(s)/transpose(jvp(a/b))/x", ("jit(s)/transpose(jvp(a/b))/x",)),
        ("", ("",)),
    ],
)
def test_merged_names_are_taken_apart(op_name, names):
    assert _names.alternatives(op_name) == names


def test_arrays_that_move_together_are_told_apart():
    names = "jit(s)/jvp()/(ffn/up/convert:ffn/down/convert)"
    half = "bf16[512,4096]{1,0}"
    text = module(
        f"%a = {half} parameter(0)",
        "%b = bf16[1536,4096]{1,0} parameter(1)",
        f"%s = (({half}, {half}), ({half}, {half})) reduce-scatter-start(%a, %b), "
        f'channel_id=1, {GROUPS}, dimensions={{0}}, metadata={{op_name="{names}"}}',
        f"%d = ({half}, {half}) reduce-scatter-done(%s)",
    )
    found = read_module(text, MESH, V5P)
    moved = {row["verb"]: row for row in found["collectives"]}
    assert moved["ffn/up"]["bytes"] == 512 * 4096 * 2
    assert moved["ffn/down"]["bytes"] == 1536 * 4096 * 2
    whole = alone(2048 * 4096 * 2, kind="reduce-scatter")
    assert moved["ffn/down"]["seconds"] == pytest.approx(whole * 3 / 4)
    assert found["step_seconds"] == pytest.approx(whole)


def test_a_wait_is_charged_to_what_was_queued_before():
    (a, ad), (b, bd) = gather("a", 1), gather("b", 2)
    text = module(
        BIG,
        a.replace(", dimensions", ', metadata={op_name="jit(s)/jvp()/one/x"}, dim'),
        b.replace(", dimensions", ', metadata={op_name="jit(s)/jvp()/two/x"}, dim'),
        bd,
        ad,
    )
    found = read_module(text, MESH, V5P)
    waits = {row["verb"]: row["exposed_seconds"] for row in found["collectives"]}
    assert waits == {"one": pytest.approx(alone()), "two": pytest.approx(alone())}


def test_slices_count_through_bitcasts_and_among_several_results():
    stack, part = "f32[1024,40,1024]{2,1,0}", "f32[1024,1,1024]{2,1,0}"
    body = computation(
        "f",
        f"%q = {stack} parameter(0)",
        "%i = s32[] parameter(1)",
        f"%b = {stack} bitcast(%q)",
        f"%s = {part} dynamic-slice(%b, %i)",
        f"%u = {stack} dynamic-update-slice(%b, %s, %i)",
        f"ROOT %both = ({stack}, {part}) tuple(%u, %s)",
    )
    text = module(
        f"%p = {stack} parameter(0)",
        "%n = s32[] parameter(1)",
        f"%x = ({stack}, {part}) fusion(%p, %n), kind=kLoop, calls=%f",
        others=body,
    )
    found = read_module(text, {"fsdp": 8}, "h100:1x8")
    reached = price.FITTED["NVIDIA"]
    moved = 3 * 4 * 1024 * 1024  # read once, written twice; the stack stays
    seconds = moved / (3.35e12 * reached.memory) + reached.launch_seconds
    assert found["step_seconds"] == pytest.approx(seconds, rel=1e-3)


def test_what_crosses_slices_is_sent_over_the_network():
    attributes = (
        "is_host_transfer=true, frontend_attributes={"
        '_xla_host_transfer_rendezvous="all-reduce.1_0",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = module(
        BIG,
        "%t = token[] after-all()",
        f"%r = ({SHARD}, u32[], token[]) recv(%t), channel_id=2, {attributes}",
        f"%s = ({SHARD}, u32[], token[]) send(%g, %t), channel_id=3, {attributes}",
        "%sd = token[] send-done(%s), channel_id=3",
        f"%rd = ({SHARD}, token[]) recv-done(%r), channel_id=2",
        header=", num_partitions=64",
    )
    found = read_module(text, {"data": 2, "fsdp": 64}, "tpu-v5p:4x4x4*2")
    (row,) = found["collectives"]
    assert (row["kind"], row["axes"], row["link"]) == ("all-reduce", ["data"], "dcn")
    size = 1024 * 4096 * 2
    assert row["bytes"] == size
    rate = 6.25e9 * price.FITTED["Google"].network
    assert found["exposed_seconds"] == pytest.approx(size / rate, rel=0.01)
    with pytest.raises(ValueError, match="64 partitions but the mesh"):
        read_module(text, {"fsdp": 96}, "tpu-v5p:4x4x4*2")


def test_what_has_no_name_is_its_users():
    start, done = gather(operand="c")
    text = module(
        BIG,
        f"%c = {SHARD} copy(%g)",
        start,
        done,
        fusion("y", "sd", 10, op_name="jit(s)/jvp()/ffn/down/BTF,FD->BTD/dot_general"),
        others=EMPTY,
    )
    found = read_module(text, MESH, V5P)
    assert found["collectives"][0]["verb"] == "ffn/down"
    assert list(found["by_verb"]) == ["ffn/down"]
    assert found["by_axis"]["fsdp"]["collective_bytes"] == WHOLE_BYTES
    assert set(found["by_pass"]) == {"forward"}


# --- Links


def test_rings_of_a_torus():
    size, links_rate, hop = 64e6, 6e11 * 0.9, 1e-6
    time = alone(size)  # all six links, 2 hops at most along each of three dims
    assert time == pytest.approx(size * 63 / 64 / links_rate + hop * (1 + 6))
    twice = alone(size, kind="all-reduce")
    assert twice == pytest.approx(2 * size * 63 / 64 / links_rate + hop * (1 + 12))
    one_dim = alone(size, {"tensor": 4, "fsdp": 16})
    assert one_dim == pytest.approx(size * 3 / 4 / (links_rate / 3) + hop * (1 + 2))


def test_an_all_to_all_is_a_quarter_of_its_ring():
    mesh = {"tensor": 4, "fsdp": 16}
    shard = 1e9
    gathered = alone(4 * shard, mesh)
    swapped = alone(shard, mesh, kind="all-to-all")
    assert swapped == pytest.approx(gathered * 4 / 3 / 4, rel=0.01)


@pytest.mark.parametrize(
    ("mesh", "target", "rings"),
    [
        ({"fsdp": 64}, V5P, {"fsdp": [4, 4, 4]}),
        ({"fsdp": 16, "tensor": 4}, V5P, {"fsdp": [4, 4], "tensor": [4]}),
        ({"data": 2, "fsdp": 32}, V5P, {"data": [2], "fsdp": [4, 4, 2]}),
        ({"data": 2, "fsdp": 64}, "tpu-v5p:4x4x4*2", {"data": [], "fsdp": [4, 4, 4]}),
        ({"fsdp": 64, "tensor": 2}, "tpu-v4:4x4x4", {"fsdp": [4, 4, 4], "tensor": [2]}),
    ],
)
def test_axes_take_whole_dims_of_the_torus_where_they_can(mesh, target, rings):
    found = links.of_axes(mesh, parse_target(target))
    sizes = {axis: [size for _, size, _ in link.rings] for axis, link in found.items()}
    assert {axis: math.prod(each) for axis, each in sizes.items()} == {
        axis: math.prod(each) for axis, each in rings.items()
    }
    whole = {axis: each for axis, each in rings.items() if axis != "fsdp"}
    assert {axis: sizes[axis] for axis in whole} == whole


def test_what_crosses_nodes_or_slices_goes_over_the_network():
    mesh = {"data": 8, "tensor": 8}
    found = links.of_axes(mesh, parse_target("h100:8x8"))
    assert (found["data"].kind, found["tensor"].kind) == ("dcn", "nvlink")
    assert (found["data"].nodes, found["data"].per_node) == (8, 1)
    whole = links.of_axes({"fsdp": 64}, parse_target("h100:8x8"))["fsdp"]
    assert (whole.kind, whole.nodes, whole.per_node) == ("dcn", 8, 8)
    near, far = (
        alone(1e9, {axis: 8, rest: 8}, "h100:8x8")
        for axis, rest in (("tensor", "data"), ("data", "tensor"))
    )
    assert far > 5 * near
    slices = links.of_axes({"data": 2, "fsdp": 64}, parse_target("tpu-v5p:4x4x4*2"))
    assert (slices["data"].kind, slices["fsdp"].kind) == ("dcn", "ici")


@pytest.mark.parametrize("names", [("data", "model"), ("x", "y")])
def test_of_axes_that_nobody_here_knows_the_last_is_closest(names):
    """As the mesh puts them: `layouts.mesh.mesh_of` sorts by what axes send."""
    far, near = names
    nodes = links.of_axes({far: 2, near: 8}, parse_target("h100:2x8"))
    assert (nodes[far].kind, nodes[near].kind) == ("dcn", "nvlink")
    slices = links.of_axes({far: 2, near: 64}, parse_target("tpu-v5p:4x4x4*2"))
    assert (slices[far].kind, slices[near].kind) == ("dcn", "ici")


# --- Memory


def peak(text):
    made = _module.Module(text)
    return live.peak(made, _names.Names(made), text.partition("\n")[0])


CELL = "f32[1024,1024]{1,0:T(8,128)}"
MIB = 2**20


def test_values_live_from_their_line_to_their_last_user():
    text = module(
        f"%p = {CELL} parameter(0)",
        f"%a = {CELL} negate(%p)",
        f"%b = {CELL} negate(%a)",
        f"%c = {CELL} add(%b, %a)",
        f"ROOT %d = {CELL} negate(%c)",
    )
    found = peak(text)
    assert found.bytes == 3 * 4 * MIB  # p, a and b; c overwrites one of them
    assert {each.name for each in found.buffers} == {"p", "a", "b"}
    assert [each.what for each in found.buffers].count("argument") == 1


def test_where_aliases_are_listed_nothing_else_is_overwritten():
    listed = 'backend_config={"aliasing_operands":{"lists":[]}}'
    lines = (
        f"%p = {CELL} parameter(0)",
        f"%a = {CELL} negate(%p)",
        f"%b = {CELL} negate(%a)",
        f"ROOT %c = {CELL} negate(%b)",
    )
    assert peak(module(*lines)).bytes == 2 * 4 * MIB
    lines = (lines[0], f"{lines[1]}, {listed}", *lines[2:])
    assert peak(module(*lines)).bytes == 3 * 4 * MIB


def test_a_donated_argument_holds_the_result():
    lines = (f"%p = {CELL} parameter(0)", f"ROOT %a = {CELL} negate(%p)")
    alias = ", input_output_alias={ {}: (0, {}, may-alias) }, entry_computation_layout"
    assert peak(module(*lines)).bytes == 8 * MIB
    assert peak(module(*lines, header=alias)).bytes == 4 * MIB


def test_views_and_listed_aliases_share_memory():
    in_place = '"aliasing_operands":{"lists":[{"indices":["0","1"]}]}'
    text = module(
        f"%p = {CELL} parameter(0)",
        f"%a = {CELL} negate(%p)",
        f"%b = {CELL} bitcast(%a)",
        f"%c = {CELL} fusion(%b), kind=kLoop, calls=%f, backend_config={{{in_place}}}",
        f"%t = ({CELL}, {CELL}) tuple(%c, %p)",
        f"ROOT %d = {CELL} get-tuple-element(%t), index=0",
        others=EMPTY,
    )
    assert peak(text).bytes == 8 * MIB


def test_a_loop_needs_its_body_beside_its_state():
    state = f"(s32[], {CELL})"
    others = computation(
        "body",
        f"%s = {state} parameter(0)",
        "%i = s32[] get-tuple-element(%s), index=0",
        f"%x = {CELL} get-tuple-element(%s), index=1",
        f"%y = {CELL} negate(%x)",
        f"%z = {CELL} add(%y, %y)",
        f"%e = {CELL} add(%z, %y)",
        f"ROOT %t = {state} tuple(%i, %e)",
    ) + computation(
        "cond", f"%s = {state} parameter(0)", "ROOT %c = pred[] constant(1)"
    )
    text = module(
        f"%p = {CELL} parameter(0)",
        f"%a = {CELL} negate(%p)",
        "%i = s32[] constant(0)",
        f"%t = {state} tuple(%i, %a)",
        f"%w = {state} while(%t), condition=%cond, body=%body",
        f"ROOT %r = {CELL} get-tuple-element(%w), index=1",
        others=others,
    )
    found = peak(text)
    assert found.bytes == 16 * MIB  # p, the state, y and z, which e overwrites
    loops = {each.name: each.loop for each in found.buffers}
    assert loops == {"p": None, "a": None, "y": "body", "z": "body"}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[1024,64]{1,0:T(8,128)}", 1024 * 128 * 4),
        ("f32[1024,64]{0,1:T(8,128)}", 1024 * 64 * 4),
        ("bf16[3,100]{1,0:T(8,128)(2,1)}", 8 * 128 * 2),
        ("f32[3,100]", 1200),
        ("s32[]{:T(128)}", 4),
    ],
)
def test_padding_counts(shape, size):
    (array,) = _shapes.arrays(shape)
    assert array.padded_bytes == size


def test_other_memories_do_not_count():
    text = module(
        f"%p = {CELL} parameter(0)",
        f"%a = {CELL.replace(')}', ')S(1)}')} negate(%p)",
        f"%b = {CELL.replace(')}', ')S(5)}')} negate(%a)",
        f"ROOT %c = {CELL} negate(%b)",
    )
    assert peak(text).bytes == 8 * MIB
