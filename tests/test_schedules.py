"""Pipeline schedules: closed forms, what is held, and tables that cannot be."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_lab.parallel import schedules
from scaling_lab.parallel.schedules import BrokenSchedule, Costs, Task

STAGES, PARTS = st.integers(1, 8), st.integers(1, 24)
COST = st.floats(0.1, 5.0)


def run(kind, stages, microbatches, virtual=1, **costs):
    schedule = schedules.make(kind, stages, microbatches, virtual)
    return schedules.simulate(schedule, Costs(**costs) if costs else None)


@pytest.mark.parametrize("kind", ["gpipe", "1f1b", "eager_1f1b"])
@settings(max_examples=60, deadline=None)
@given(stages=STAGES, microbatches=PARTS, forward=COST, backward=COST)
def test_bubble_of_whole_stages(kind, stages, microbatches, forward, backward):
    """(Z-1)/(M+Z-1), whatever a task costs (Narayanan et al. 2021, section 2.2)."""
    costs = {"forward": forward, "input_gradient": backward, "weight_gradient": 0.5}
    found = run(kind, stages, microbatches, **costs)
    wanted = (stages - 1) / (microbatches + stages - 1)
    assert found.bubble == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(stages=STAGES, groups=st.integers(1, 4), virtual=st.integers(1, 4))
def test_chunks_divide_the_bubble(stages, groups, virtual):
    microbatches = groups * stages
    found = run("interleaved", stages, microbatches, virtual)
    wanted = (stages - 1) / (virtual * microbatches + stages - 1)
    assert found.bubble == pytest.approx(wanted, abs=1e-9)
    assert found.in_flight == (microbatches,) * stages
    whole = run("gpipe", stages, microbatches)
    assert sum(found.idle) == pytest.approx(sum(whole.idle) / virtual)


@settings(max_examples=60, deadline=None)
@given(stages=STAGES, microbatches=PARTS)
def test_microbatches_held(stages, microbatches):
    assert run("gpipe", stages, microbatches).in_flight == (microbatches,) * stages
    wanted = tuple(min(microbatches, stages - stage) for stage in range(stages))
    assert run("1f1b", stages, microbatches).in_flight == wanted
    eager = tuple(min(microbatches, 2 * own - 1) for own in range(stages, 0, -1))
    assert run("eager_1f1b", stages, microbatches).in_flight == eager
    found = run("zb_h1", stages, microbatches).in_flight
    assert max(found) == min(microbatches, stages)
    found = run("eager_zb_h1", stages, microbatches).in_flight
    wanted = (2 * stages - 1 - stage for stage in range(stages))
    assert found == tuple(min(microbatches, most) for most in wanted)


@settings(max_examples=60, deadline=None)
@given(stages=STAGES, more=st.integers(0, 16))
def test_zero_bubble_h1_leaves_a_third(stages, more):
    """(Z-1)(F + I - W) of idle time (Qi et al. 2023, table 2), from M = Z on."""
    microbatches = stages + more
    found = run("zb_h1", stages, microbatches)
    assert found.seconds == 3 * microbatches + stages - 1
    whole = run("1f1b", stages, microbatches)
    assert sum(found.idle) == pytest.approx(sum(whole.idle) / 3)


@settings(max_examples=60, deadline=None)
@given(stages=STAGES, more=st.integers(0, 16), costs=st.tuples(COST, COST, COST))
def test_in_step_no_stage_waits_for_gradients_of_weights(stages, more, costs):
    """(Z-1)(F + I) is waited, where stages that make both at once wait for W too."""
    microbatches = stages + more
    names = ("forward", "input_gradient", "weight_gradient")
    given = dict(zip(names, costs, strict=True))
    forward, first, second = costs
    found = run("eager_zb_h1", stages, microbatches, **given)
    busy = microbatches * (forward + first + second)
    assert found.seconds <= busy + (stages - 1) * (forward + first) + 1e-9
    whole = run("eager_1f1b", stages, microbatches, **given)
    assert whole.seconds == pytest.approx(busy + (stages - 1) * sum(costs))


@settings(max_examples=30, deadline=None)
@given(stages=STAGES, microbatches=PARTS, costs=st.tuples(COST, COST, COST))
def test_zero_bubble_is_never_slower(stages, microbatches, costs):
    named = dict(
        zip(("forward", "input_gradient", "weight_gradient"), costs, strict=True)
    )
    slow = run("1f1b", stages, microbatches, **named).seconds
    assert run("zb_h1", stages, microbatches, **named).seconds <= slow + 1e-9


def test_sending_takes_time():
    """GPipe waits for it on the ramps alone; 1F1B in between as well."""
    near, far = (run("gpipe", 4, 8, send=send).seconds for send in (0.0, 0.5))
    assert far - near == pytest.approx(2 * 3 * 0.5)
    assert run("1f1b", 4, 8, send=0.5).seconds > far


def test_uneven_layers_wait_for_the_largest_stage():
    layers = schedules.layers_of(4, 10)
    assert layers == [3, 3, 2, 2]
    schedule = schedules.make("gpipe", 4, 100)
    found = schedules.simulate(schedule, layers=layers)
    assert found.seconds / schedules.simulate(schedule).seconds == pytest.approx(
        3 / 2.5, rel=0.02
    )
    with pytest.raises(ValueError, match="3 layers are too few for 4"):
        schedules.layers_of(4, 3)


# --- Tables that cannot be


def broken(change, kind="1f1b"):
    schedule = schedules.make(kind, 2, 3)
    orders = [list(order) for order in schedule.orders]
    change(orders)
    return dataclasses.replace(schedule, orders=tuple(map(tuple, orders)))


def swap(orders):
    orders[0][0], orders[0][-1] = orders[0][-1], orders[0][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda orders: orders[1].pop(), "stage 1 never does .*'B', microbatch=2"),
        (lambda orders: orders[0].append(orders[0][0]), "is done twice"),
        (lambda orders: orders[0].append(Task("F", 9)), "is none of its tasks"),
        (lambda orders: orders[0].append(Task("W", 0)), "is none of its|never does"),
        (lambda orders: orders.pop(), "1 orders for 2 stages"),
        (swap, "waits for ever: stage 0 before .*'B', microbatch=2"),
    ],
    ids=["missing", "twice", "foreign", "split", "stage", "deadlock"],
)
def test_broken_tables_are_caught(change, message):
    with pytest.raises(BrokenSchedule, match=message):
        schedules.simulate(broken(change))


def test_two_stages_that_wait_for_each_other():
    """Each order is sound alone: stage 0 wants B0 back before it sends microbatch 1,
    and stage 1 wants both before it goes back."""

    def change(orders):
        orders[0][:] = [Task(d, m) for m in range(3) for d in "FB"]
        orders[1][:] = [Task(d, m) for d in "FB" for m in range(3)]

    with pytest.raises(BrokenSchedule, match="stage 0 before .* stage 1 before"):
        schedules.simulate(broken(change))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gpip", 2, 2), "did you mean gpipe"),
        (("gpipe", 0, 2), "stages=0: must be at least 1"),
        (("1f1b", 2, 2, 2), "one chunk of layers a stage, not 2"),
        (("interleaved", 4, 6, 2), "nearest microbatches: 4, 8"),
        (("interleaved", 4, 3, 2), "nearest microbatches: 4"),
    ],
)
def test_what_cannot_be_says_what_can(words, message):
    with pytest.raises(ValueError, match=message):
        schedules.make(*words)


@pytest.mark.parametrize("costs", [{"send": -1.0}, {"forward": float("nan")}])
def test_costs_are_numbers(costs):
    with pytest.raises(ValueError, match="must be a number of at least 0"):
        Costs(**costs)


# --- By ticks


@pytest.mark.parametrize(("kind", "virtual"), [("gpipe", 1), ("interleaved", 3)])
def test_ticks_hand_on_in_one(kind, virtual):
    schedule = schedules.make(kind, 4, 8, virtual)
    rows = schedules.forward_ticks(schedule).rows
    assert len(rows) == 8 * virtual + 3
    done = [task for row in rows for task in row if task is not None]
    assert len(done) == 4 * 8 * virtual


def test_alternating_schedules_are_not_in_lockstep():
    with pytest.raises(BrokenSchedule, match="alternate"):
        schedules.forward_ticks(schedules.make("1f1b", 4, 8))


def test_picture_in_letters():
    assert schedules.text(run("1f1b", 2, 2)).splitlines() == [
        "stage 0  F0 F1 ·  ·  B0 ── ·  B1 ──",
        "stage 1  ·  F0 B0 ── F1 B1 ── ·  ·",
    ]
