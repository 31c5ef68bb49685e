"""Predicted steps: physics that holds, prices that add up, fits that recover."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scaling_lab as lab
from scaling_lab.compile import price
from scaling_lab.cost import calibrations
from scaling_lab.cost.communication import Wires
from scaling_lab.cost.efficiencies import PRIORS, Calibration
from scaling_lab.cost.fit import fit, half_width, held_out
from scaling_lab.cost.machines import machine_columns, peak_of
from scaling_lab.cost.memory import memory
from scaling_lab.cost.points import SCHEDULES, Points, names
from scaling_lab.cost.predict import parts_of, predict
from scaling_lab.cost.runs import points_of
from scaling_lab.cost.shapes import model_flops, parameter_count, shapes_of
from scaling_lab.hardware import chip
from scaling_lab.sweep.run import predicted

SEVENTY = lab.configure(
    "llama",
    "70b",
    "fsdp=64",
    "h100:8x8",
    batch=128,
    length=8192,
    precision="bfloat16",
    remat="full",
)


def seventy(**changes):
    """Llama 3 70B on 64 H100, as one point, changed; its stages wait as others' do."""
    return points_of([SEVENTY]).replace(**{"lockstep": 0.0} | changes)


def seconds(points):
    return float(predict(points).step_seconds[0])


# --- Columns


def test_points_are_columns():
    two = Points.concat([seventy(), seventy(layers=40)])
    assert len(two) == 2 and list(two.layers) == [80, 40]
    assert len(two.take([1, 0, 1])) == 3 and two.take(1).layers[0] == 40
    assert list(two.take(two.layers > 50).layers) == [80]
    many = seventy(microbatch_seqs=np.arange(1, 5))
    assert len(many) == 4 and set(many.chip) == {"h100"}
    with pytest.raises(ValueError, match="columns"):
        seventy(layers=np.ones((2, 2)))
    with pytest.raises(ValueError, match="at least one"):
        Points.concat([])


def test_many_are_predicted_as_each_alone():
    parts = [
        seventy(),
        seventy(tensor=8, fsdp=8, sequence_parallel=1),
        seventy(stage=8, fsdp=8, virtual_stages=2, microbatch_seqs=1),
        seventy(n_experts=8, top_k=2, expert_d_ff=14336, expert=8),
        points_of([dataclasses.replace(SEVENTY, target="tpu-v5p:4x4x4")]),
    ]
    together = predict(Points.concat(parts))
    for i, part in enumerate(parts):
        alone, whole = predict(part).row(0), together.row(i)
        assert alone["step_seconds"] == pytest.approx(whole["step_seconds"])
        assert alone["seconds"] == pytest.approx(whole["seconds"])


def test_causes_add_up_to_the_step():
    row = predict(seventy(stage=4, fsdp=16, microbatch_seqs=1)).row(0)
    assert sum(row["seconds"].values()) == pytest.approx(row["step_seconds"])
    assert row["step_seconds_low"] < row["step_seconds"] < row["step_seconds_high"]


# --- Physics


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        ["layers", "d_ff", "vocab", "recompute", "n_heads", "global_batch_tokens"]
    ),
    st.integers(2, 4),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([0, 16]),
)
def test_more_work_is_never_faster(column, times, tensor, experts):
    base = seventy(
        tensor=tensor,
        fsdp=64 / tensor,
        n_experts=experts,
        top_k=min(experts, 2),
        expert_d_ff=4096 if experts else 0,
        recompute=0.25,
        microbatch_seqs=1,
    )
    more = base.replace(**{column: getattr(base, column) * times})
    assert seconds(more) >= seconds(base)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        [
            "flops_per_second",
            "hbm_bytes_per_second",
            "link_bytes_per_second",
            "network_bytes_per_second",
        ]
    ),
    st.floats(1.0, 8.0),
    st.sampled_from([(1, 64, 1), (8, 8, 1), (2, 4, 8), (16, 4, 1)]),
)
def test_a_faster_machine_is_never_slower(column, times, axes):
    tensor, fsdp, stage = axes
    base = seventy(tensor=tensor, fsdp=fsdp, stage=stage, microbatch_seqs=1)
    better = base.replace(**{column: getattr(base, column) * times})
    assert seconds(better) <= seconds(base) * (1 + 1e-12)


def test_no_run_beats_its_peak():
    points = Points.concat([seventy(), seventy(fsdp=8, tensor=8, sequence_parallel=1)])
    found = predict(points)
    assert np.all(found.mfu_causal < 1) and np.all(found.mfu_causal > 0.05)
    floor = model_flops(points) / points.devices / points.flops_per_second
    assert np.all(found.step_seconds > floor)


def test_twice_the_replicas_and_the_batch_cost_no_more_than_the_network():
    base = seventy(data=1)
    wide = seventy(data=2, devices=128, global_batch_tokens=2 * 128 * 8192)
    assert seconds(base) < seconds(wide) < 1.05 * seconds(base)


def test_smaller_shards_are_less_efficient():
    products = [
        float(predict(seventy(tensor=t, fsdp=64 / t)).compute_seconds[0])
        for t in (1, 2, 4, 8)
    ]
    # The same FLOPs a device, in smaller products.
    assert products == sorted(products) and products[0] < products[-1]


def test_the_bubble_is_the_ramp():
    """GPipe and 1F1B wait (p - 1) of m + p - 1 turns (Huang et al. 2019)."""
    flat = seventy(vocab=1, stage=8, fsdp=8, microbatch_seqs=1, context=1)
    parts = parts_of(flat, Calibration())
    count = float(flat.microbatches[0])
    layer = parts.products + parts.scores + parts.memory
    layer = layer + sum(parts.exposed.values()) - parts.exposed["stage"]
    layer = layer - parts.exposed["data"] + parts.overhead - PRIORS["step"].value
    assert parts.bubble[0] == pytest.approx(7 / count * layer[0], rel=1e-2)
    twice = parts_of(flat.replace(virtual_stages=2), Calibration())
    assert twice.bubble[0] == pytest.approx(parts.bubble[0] / 2, rel=1e-2)
    third = flat.replace(schedule=SCHEDULES.index("zero_bubble"))
    assert parts_of(third, Calibration()).bubble[0] == pytest.approx(
        parts.bubble[0] / 3, rel=1e-2
    )


def test_our_stages_work_at_every_tick():
    """What is made later is never made for nothing, and alternating costs a pass."""
    sizes = {"vocab": 1, "stage": 8, "fsdp": 8, "microbatch_seqs": 1, "lockstep": 1}

    def of(name, **changes):
        run = seventy(schedule=SCHEDULES.index(name), **sizes | changes)
        return run, parts_of(run, Calibration())

    run, plain = of("gpipe")
    count = float(run.microbatches[0])
    _, alternating = of("1f1b")
    _, apart = of("zero_bubble")
    longer = alternating.products / plain.products
    assert longer == pytest.approx(5 / 4, rel=0.03)  # and both make the head's
    assert apart.products == pytest.approx(alternating.products)
    spared = alternating.bubble - apart.bubble
    assert spared == pytest.approx(7 / count * apart.products / 5, rel=0.06)
    _, halves = of("interleaved", virtual_stages=2)
    assert halves.bubble == pytest.approx(plain.bubble / 2, rel=0.01)
    # Of 81 layers the longest chunk has eleven, and every tick takes as long.
    _, uneven = of("gpipe", layers=81)
    layer = plain.bubble / (7 * 10)
    waits = 11 * (count + 7) - count * 81 / 8
    assert uneven.bubble == pytest.approx(waits * layer, rel=1e-2)


def test_uneven_stages_wait_for_the_fullest():
    even = seventy(layers=80, stage=8, fsdp=8, microbatch_seqs=1)
    uneven = seventy(layers=81, stage=8, fsdp=8, microbatch_seqs=1)
    # One block more on one stage: all wait for eleven, not for ten and an eighth.
    assert 1.06 < seconds(uneven) / seconds(even) < 1.12


def test_an_axis_that_leaves_the_node_pays_the_network():
    def waited(**changes):
        run = seventy(tensor=16, fsdp=4, sequence_parallel=1, **changes)
        return predict(run).communication_seconds["tensor"][0]

    # Eight members of a node drive eight network cards: fast ones keep up with NVLink.
    assert waited(network_bytes_per_second=5e9) > 4 * waited()
    joined = waited(network_bytes_per_second=5e9, scale_up=72)
    assert joined == pytest.approx(waited(scale_up=72))


def test_fewer_bits_on_a_slow_network():
    """ZeRO++ moves a quarter between nodes, and a second copy of the weights rests."""
    base = seventy(grad_bytes=2, microbatch_seqs=1, network_bytes_per_second=1e8)
    less = base.replace(gathered_bytes=1, near_again=1, reduced_bytes=0.5)
    before, after = (predict(p).communication_seconds["fsdp"][0] for p in (base, less))
    assert after == pytest.approx(before / 4, rel=0.06)
    copy = memory(less).parameter_bytes[0] - memory(base).parameter_bytes[0]
    assert copy == pytest.approx(2 * 70.55e9 / 8, rel=0.01)


def test_a_ring_takes_its_hops():
    """However little it carries: 56 hops within nodes, 7 between them, and a start."""
    points = seventy(fsdp=64)
    wires = Wires(points, shapes_of(points), Calibration())
    seconds = wires.collective("fsdp", points.fsdp, np.zeros(1))[0]
    assert seconds == pytest.approx(8.4e-6 + 56 * 3.4e-6 + 7 * 14e-6)
    assert wires.collective("fsdp", np.ones(1), np.ones(1))[0] == 0


# --- The scaling book's answers


def answers(shared):
    return json.loads((shared / "data" / "oracles.json").read_text())["scaling_book"]


def test_counts_of_the_scaling_book(shared):
    book = answers(shared)
    three = parameter_count(points_of([SEVENTY]))[0]
    two = lab.configure("llama", "2-13b", "fsdp=8", "h100:1x8", batch=8, length=4096)
    small = parameter_count(points_of([two]))[0]
    assert three == pytest.approx(book["llama3_70b_params_exact"], rel=1e-4)
    assert small == pytest.approx(book["llama2_13b_params_exact"], rel=1e-4)
    assert three == pytest.approx(book["llama3_70b_params"], rel=0.01)
    assert small == pytest.approx(book["llama2_13b_params"], rel=0.01)
    flops = 6 * three * 15e12
    assert flops == pytest.approx(book["llama3_70b_flops"], rel=0.01)
    peak = peak_of(chip("tpu-v5p"), "bfloat16")[0]
    days = book["llama3_70b_flops"] / (8960 * peak * 0.4) / 86400
    assert days == pytest.approx(book["llama3_70b_days_8960_v5p_40pct"], rel=0.01)


def test_a_gather_of_the_scaling_book(shared):
    """512 MiB gathered over a node of H100 at the links' full rate."""
    points = seventy(fsdp=8, devices=8)
    exact = Calibration({"link": 0.0})
    wires = Wires(points, shapes_of(points), exact)
    milliseconds = wires.ring("fsdp", points.fsdp, np.array([2.0**29]))[0] * 1e3
    wanted = answers(shared)["h100_512MB_allgather_ms"]
    assert milliseconds == pytest.approx(wanted, rel=0.01)


def at_book_rates(chip_name, devices, **axes):
    """Wires at full rate, with a link as the book has it: 45 or 90 GB/s one way."""
    found = chip(chip_name)
    each = {"tpu-v5e": 4.5e10, "tpu-v5p": 9e10}[chip_name]
    columns = machine_columns(found, devices) | {
        "link_bytes_per_second": 2 * found.torus_dims * each,
    }
    run = {"devices": devices, "data": 1, "fsdp": 1, "stage": 1} | axes
    points = points_of([SEVENTY]).replace(**columns | run)
    exact = Calibration({"link": 0.0, "network": 0.0})
    return points, Wires(points, shapes_of(points), exact)


def test_batch_at_which_an_axis_of_v5p_hides_its_gathers(shared):
    """Tokens a chip: peak over what one axis of the torus takes, both ways."""
    points, wires = at_book_rates("tpu-v5p", 4096, fsdp=16, data=256, scale_up=4096)
    rate = wires.rate("fsdp", points.fsdp)[0]
    found = peak_of(chip("tpu-v5p"), "bfloat16")[0] / rate
    assert found == pytest.approx(answers(shared)["alpha_v5p_1axis"], rel=0.01)


def test_batch_at_which_slices_hide_their_network(shared):
    """Tokens a slice's chip; the book has 446 TFLOP/s here and 459 elsewhere."""
    points, wires = at_book_rates("tpu-v5p", 8192, fsdp=4096, data=2, scale_up=4096)
    rate = wires.rate("data", points.data)[0]
    assert 4.46e14 / rate == pytest.approx(answers(shared)["dcn_batch_per_slice"], 0.01)


def test_an_array_across_a_v5e_square(shared):
    """16 MiB from one corner of 4x4 to the other over two links; six hops of 1 us."""
    wanted = answers(shared)["v5e_4x4_transfer_us"]
    points, wires = at_book_rates("tpu-v5e", 16, stage=2, data=8, scale_up=16)
    micro = 2**24 / wires.rate("stage", points.stage)[0] * 1e6
    assert micro == pytest.approx(wanted[0], rel=0.01)
    hop = price.Efficiencies().hop_seconds
    assert 2 * (4 - 1) * hop * 1e6 == pytest.approx(wanted[1])


# --- Efficiencies


def test_every_frozen_efficiency_has_its_evidence():
    table = json.loads(calibrations.FROZEN.read_text("utf-8"))
    lines = table["efficiencies"]
    assert {line["name"].partition("@")[0] for line in lines} == set(PRIORS)
    assert len(table["rows"]) > 300
    for line in lines:
        assert line["low"] < line["value"] < line["high"]
        assert 0 < line["rows"] <= len(table["rows"])
    assert all(table["meaning"][name] for name in PRIORS)
    assert 0.1 < table["half_width"] < 0.5


def test_shares_are_shares():
    for target in ("h100:8x8", "tpu-v5p:4x4x4", "mi300x:8x8", "gb200:1x72"):
        points = points_of([dataclasses.replace(SEVENTY, target=target)])
        for name in ("matmul", "attention", "memory", "link", "network", "experts"):
            assert 0 < calibrations.frozen().of(name, points)[0] < 1.0, (target, name)


def some_points():
    layouts = [(1, 64, 1), (2, 32, 1), (8, 8, 1), (4, 4, 4), (1, 8, 8)]
    return Points.concat(
        [
            seventy(tensor=t, fsdp=f, stage=s, seq_len=length, microbatch_seqs=1)
            for t, f, s in layouts
            for length in (2048, 8192)
        ]
    )


def test_a_fit_recovers_what_was_planted():
    points = some_points()
    planted = {"matmul": np.log(0.55), "tensor_exposed": np.log(0.6)}
    clock = parts_of(points, Calibration(planted)).step
    found = fit(points, clock)
    # Near, and not exact: the priors pull.
    assert np.abs(found.residuals).max() < 0.04
    assert np.median(np.abs(np.log(parts_of(points, Calibration()).step / clock))) > 0.1
    slow = predict(seventy(), found.calibration).step_seconds[0]
    truth = predict(seventy(), Calibration(planted)).step_seconds[0]
    assert slow == pytest.approx(truth, rel=0.04)


def test_an_outlier_does_not_move_a_fit():
    points = some_points()
    clock = parts_of(points, Calibration({"matmul": np.log(0.6)})).step
    spoilt = clock.copy()
    spoilt[3] *= 10
    honest, moved = fit(points, clock), fit(points, spoilt)
    a = predict(seventy(), honest.calibration).step_seconds[0]
    b = predict(seventy(), moved.calibration).step_seconds[0]
    assert b == pytest.approx(a, rel=0.03)


def test_held_out_rows_are_held_out():
    points = some_points()
    clock = parts_of(points, Calibration({"matmul": np.log(0.6)})).step
    groups = np.arange(len(points)) % 2
    clean = held_out(points, clock, groups)
    spoilt = np.where(groups == 0, clock * 1.3, clock)
    moved = held_out(points, spoilt, groups)
    np.testing.assert_allclose(clean[groups == 0], moved[groups == 0])
    assert np.median(moved[groups == 1] / clean[groups == 1]) > 1.1
    assert half_width(points, clock, clock * 1.1) == pytest.approx(np.log(1.1))
    with pytest.raises(ValueError, match="must be two"):
        held_out(points, clock, np.zeros(len(points)))
    with pytest.raises(ValueError, match="above 0"):
        fit(points, clock * 0)


def test_an_unseen_chip_is_priced_as_its_kind():
    new = seventy(chip="h300")
    eff = calibrations.frozen()
    assert eff.of("matmul", new)[0] == pytest.approx(
        np.exp(eff.logs["matmul"] + eff.logs["matmul@stack:xla"])
    )
    assert eff.of("network", new)[0] == pytest.approx(np.exp(eff.logs["network"]))


def test_a_calibration_survives_its_file(tmp_path):
    points = some_points()
    clock = parts_of(points, Calibration({"matmul": np.log(0.6)})).step
    found = fit(points, clock)
    path = tmp_path / "deep" / "mine.json"
    rows = [f"r{i}" for i in range(len(points))]
    calibrations.write(path, found, 0.1, "ten points", rows)
    back = calibrations.read(path)
    assert back.half_width == pytest.approx(0.1)
    np.testing.assert_allclose(
        predict(points, back).step_seconds,
        parts_of(points, found.calibration).step,
        rtol=1e-4,
    )
    assert not list(path.parent.glob("*.unfinished"))
    text = json.loads(path.read_text())
    text["efficiencies"][0]["name"] = "luck"
    path.write_text(json.dumps(text))
    with pytest.raises(ValueError, match="no efficiency is called 'luck'"):
        calibrations.read(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no calibration"):
        calibrations.read(path)


# --- Our own runs


def test_a_run_of_ours_as_a_point():
    points = points_of([SEVENTY])
    assert points.fsdp[0] == 64 and points.zero_stage[0] == 3
    assert points.devices[0] == 64 and points.microbatches[0] == 1
    assert points.params[0] == 70_553_706_496
    # Full remat does everything again but the last product.
    assert 0.6 < points.recompute[0] < 0.8
    assert set(names()) == {f.name for f in dataclasses.fields(points)}


def test_the_predicted_column_has_the_step_where_the_chip_is_known():
    column = predicted(SEVENTY)
    assert column["step_seconds_low"] < column["step_seconds"]
    assert column["hbm_bytes"] > 0 and column["seconds"]["products"] > 0
    toy = lab.configure("llama", "toy", "fsdp=8", "cpu:8", batch=8, length=64)
    assert predicted(toy)["step_seconds"] is None


def test_a_chip_without_a_claim_is_told_in_units():
    assert peak_of(chip("cpu"), "float32")[0] == peak_of(chip("cpu"), "bfloat16")[0]
    assert machine_columns(chip("cpu"), 2)["devices"] == 2


def test_experts_apart_gather_their_weights_by_themselves():
    """A node holds eight experts: each link brings the weights of another."""

    def seconds(layout, target="h100:16x8"):
        words = {"batch": 128, "length": 2048}
        config = lab.configure("mixtral", "8x7b", layout, target, **words)
        points = points_of([config])
        wires = Wires(points, shapes_of(points), calibrations.frozen())
        some, none = np.array([1e9]), np.zeros(1)
        return wires.fsdp(some, none)[0], wires.fsdp(none, some)[0]

    together, apart = seconds("expert=8,fsdp=16")
    assert 6 < apart / together < 8
    assert seconds("expert=8,fsdp=4,context=4")[1] == pytest.approx(apart / 4, rel=0.1)
    assert seconds("expert=8", "h100:1x8")[1] < together / 50  # held whole
