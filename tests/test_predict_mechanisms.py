"""What predictions know of a layout's mechanisms and of a run's dtypes."""

import dataclasses

import numpy as np
import pytest

import scaling_lab as lab
from scaling_lab.compile import price
from scaling_lab.cost import calibrations, kernels
from scaling_lab.cost.communication import Wires
from scaling_lab.cost.compute import Arithmetic
from scaling_lab.cost.explain import explain
from scaling_lab.cost.memory import memory
from scaling_lab.cost.points import Points
from scaling_lab.cost.predict import parts_of, predict
from scaling_lab.cost.runs import points_of
from scaling_lab.cost.shapes import shapes_of

LONG = {"batch": 8, "length": 32768, "precision": "bfloat16"}
KEPT = "save:attention/query,attention/key,attention/value,attention/attend"


def llama(layout, target="h100:8x8", size="8b", **words):
    return lab.configure("llama", size, layout, target, **{"batch": 64, **words})


def mixtral(layout, target="h100:1x8", **words):
    words = {"batch": 32, "length": 2048, "precision": "bfloat16", **words}
    return lab.configure("mixtral", "8x7b", layout, target, **words)


def seconds(config):
    return predict(points_of([config])).row(0)


def wires(config, **columns):
    points = points_of([config]).replace(**columns)
    return Wires(points, shapes_of(points), calibrations.frozen())


# --- Attention of a divided sequence


@pytest.mark.parametrize("word", ["", "+ring", "+ulysses"])
def test_a_gpu_writes_no_scores_of_a_divided_sequence(word):
    config = llama(f"fsdp=8,context=8{word}", remat=KEPT, **LONG)
    assert points_of([config]).flash[0] == 1
    assert seconds(config)["step_seconds"] < 2.1  # 3.0 if they were written


@pytest.mark.parametrize(
    ("layout", "words", "written"),
    [
        ("fsdp=8,context=8", {"length": 32768}, False),
        # Of chunks of 8 positions Triton has no product.
        ("fsdp=8,context=8", {"length": 128}, True),
        ("fsdp=8,context=8+ulysses", {"length": 128}, False),
        ("fsdp=64", {"length": 2048, "mask": "prefix=64"}, False),
        ("fsdp=64", {"length": 2048, "mask": "top=4,block=32"}, False),
        ("fsdp=64", {"length": 2048, "mask": "top=4,block=8"}, True),
        ("fsdp=64", {"length": 2048, "precision": "float32"}, False),
    ],
)
def test_scores_are_written_where_no_kernel_has_a_form(layout, words, written):
    config = llama(layout, **{"precision": "bfloat16", **words})
    assert points_of([config]).flash[0] == 1 - written


def test_wide_heads_have_a_kernel_and_wider_ones_none():
    config = lab.configure("gemma3", "4b", "fsdp=8,context=2", "h100:2x8", length=4096)
    assert config.model.H == 256 and points_of([config]).flash[0] == 1
    model = dataclasses.replace(config.model, H=512)
    wider = dataclasses.replace(config, model=model)
    assert points_of([wider]).flash[0] == 0


def test_whole_rows_go_to_the_faster_kernel():
    """Compiled, gathered keys take 1.19 times the step of exchanged heads."""

    def step(word, **columns):
        points = points_of([llama(f"fsdp=8,context=8{word}", remat=KEPT, **LONG)])
        return float(predict(points.replace(**columns)).step_seconds[0])

    assert 1.1 < step("") / step("+ulysses") < 1.3
    assert step("", attend_times=1) < step("+ulysses")


def test_rates_of_kernels_are_those_of_compiled_steps():
    fitted = price.FITTED
    assert kernels.CUDNN == fitted["NVIDIA"].attention
    assert kernels.TRITON == fitted["NVIDIA"].triton_attention
    assert kernels.AMPERE == fitted["a100"].triton_attention
    times = [
        points_of([llama("fsdp=4,context=2", f"{chip}:1x8", length=2048)]).attend_times[
            0
        ]
        for chip in ("h100", "b200", "a100")
    ]
    assert times[0] == times[1] > 1.4 * times[2] > 1.4


def test_a_ring_hides_its_keys_behind_attention_on_a_torus():
    def waited(word, target, batch=8, length=32768):
        words = {**LONG, "batch": batch, "length": length}
        config = llama(f"fsdp=8,context=8{word}", target, remat=KEPT, **words)
        return seconds(config)["seconds"]["context exposed"]

    assert waited("+ring", "tpu-v5p:4x4x4") == 0 < waited("", "tpu-v5p:4x4x4")
    # Of short rows attention is too little to hide them.
    assert waited("+ring", "tpu-v5p:4x4x4", length=512) > 0
    assert waited("+ring", "h100:8x8") == waited("", "h100:8x8")


# --- Products in 8 bits


def test_experts_stay_in_16_bits():
    def arithmetic(precision):
        points = points_of([mixtral("expert=8", precision=precision)])
        return Arithmetic(points, shapes_of(points), calibrations.frozen())

    wide, low = arithmetic("bfloat16"), arithmetic("float8")
    assert low.experts() == wide.experts() and low.head() == wide.head()
    assert low.attention_products() < 0.75 * wide.attention_products()
    published = low.p.replace(low_experts=1)
    low = Arithmetic(published, low.s, calibrations.frozen())
    assert low.experts() < 0.75 * wide.experts()


def test_experts_rows_are_not_cast():
    def memory_seconds(**columns):
        points = points_of([mixtral("expert=8", precision="float8")])
        points = points.replace(**columns)
        return parts_of(points, calibrations.frozen()).memory[0]

    assert memory_seconds() < 0.95 * memory_seconds(low_experts=1)


def test_a_weights_gradient_of_int8_is_of_16_bits():
    """Twice the rate in two products of three: 3 / 2 as fast at most, and not 3."""

    def products(precision, **columns):
        config = llama("fsdp=64", "tpu-v5p:4x4x4", precision=precision, batch=128)
        points = points_of([config]).replace(**columns)
        return parts_of(points, calibrations.frozen()).products[0]

    wide, int8 = products("bfloat16"), products("int8")
    assert 1.2 < wide / int8 < 1.5
    assert wide / products("int8", low_gradients=1) > 1.5
    # In float8 all three are coded.
    assert products("float8") == products("float8", low_gradients=1)


# --- What gradients are summed in


@pytest.mark.parametrize("layout", ["fsdp=8", "data=8", "data=8+zero1", "data=8+zero2"])
def test_gradients_on_the_wires_are_as_wide_as_the_run_says(layout):
    held, none = np.array([1e9]), np.zeros(1)

    def moved(reduce, **columns):
        found = wires(llama(layout, "h100:1x8", reduce=reduce), **columns)
        over_fsdp = layout == "fsdp=8"
        return (found.fsdp(held, none) if over_fsdp else found.gradients(held))[0]

    rest = moved("bfloat16", reduced_bytes=0.0)  # weights, and what both take to start
    narrow, wide = moved("bfloat16") - rest, moved("float32") - rest
    # The embedding is looked up in: its gradient is no product, and not told.
    assert 1.8 < wide / narrow < 2
    if layout == "fsdp=8":
        assert moved("float32") == moved(None)


def test_what_is_not_said_is_as_it_was():
    config = llama("fsdp=64", remat="full")
    assert np.isnan(points_of([config]).reduced_bytes[0])
    said = dataclasses.replace(config, reduce="float32")
    assert points_of([said]).reduced_bytes[0] == 4.0
    # Experts' weights are summed in what they are computed in, whatever is said.
    told = points_of([mixtral("fsdp=8", reduce="bfloat16")])
    assert 3.8 < told.reduced_bytes[0] < 4.0


def test_stages_reduce_every_microbatch_where_the_run_says_in_what():
    def waited(reduce):
        config = llama(
            "stage=2,data=4", "h100:1x8", batch=64, accumulate=8, reduce=reduce
        )
        return seconds(config)["seconds"]["data exposed"]

    assert waited("float32") > waited("bfloat16") > 2 * waited(None)


# --- How rows meet their experts


@pytest.mark.parametrize("word", ["+ring_of_experts", "+capacity"])
@pytest.mark.parametrize("target", ["h100:1x8", "tpu-v5p:2x2x2"])
def test_mechanisms_of_experts_send_what_is_explained(word, target):
    """Over the bytes of an exchange, as `explain` counts them on one fast network."""

    def told(config):
        rows = [row for row in explain(config).rows if "ffn/experts" in row.name]
        items = [item for row in rows for item in row.collectives]
        return sum(item.bytes for item in items if item.axes == ("expert",))

    plain, other = (mixtral(f"expert=8{w}", target) for w in ("", word))
    ratio = wires(other).experts()[0] / wires(plain).experts()[0]
    assert ratio == pytest.approx(told(other) / told(plain), rel=0.01)
    assert ratio == pytest.approx(1.25 if word == "+capacity" else 4, rel=0.01)


def test_places_go_to_every_node_however_few_tokens():
    """Rows of one token travel together, and places do not."""
    plain, places = (
        mixtral(f"expert=8,fsdp=2{w}", "h100:2x8") for w in ("", "+capacity")
    )
    points = [points_of([c]).replace(scale_up=2.0) for c in (plain, places)]
    one, other = (
        Wires(p, shapes_of(p), calibrations.frozen()).experts()[0] for p in points
    )
    assert other > 1.3 * one


def test_gathered_weights_send_no_rows():
    assert wires(mixtral("fsdp=8")).experts()[0] == 0
    assert wires(mixtral("fsdp=8+capacity")).experts()[0] == 0
    bound = mixtral("expert=8")
    layout = dataclasses.replace(bound.layout, bind={"experts": "sorted"})
    whole = points_of([dataclasses.replace(bound, layout=layout)])
    assert whole.expert[0] == 1 and whole.fsdp[0] == 8


def test_places_are_all_the_room_there_is():
    """One layer, compiled: 12.3 GB, and with places 6.4 GB and 1.2 times the FLOPs."""

    def layer(word):
        config = mixtral(f"expert=8{word}", remat="full")
        model = dataclasses.replace(config.model, L=1)
        return points_of([dataclasses.replace(config, model=model)])

    def products(points):
        return Arithmetic(points, shapes_of(points), calibrations.frozen()).experts()[0]

    plain, places = layer(""), layer("+capacity")
    assert memory(places).hbm_bytes[0] < 0.75 * memory(plain).hbm_bytes[0]
    assert 1.15 < products(places) / products(plain) <= 1.25


def test_mechanisms_are_predicted_together_as_each_alone():
    configs = [mixtral(f"expert=8{w}") for w in ("", "+capacity", "+ring_of_experts")]
    configs += [mixtral("fsdp=8", reduce="bfloat16", precision="float8")]
    together = predict(Points.concat([points_of([c]) for c in configs]))
    for i, config in enumerate(configs):
        alone = seconds(config)
        assert together.row(i)["step_seconds"] == pytest.approx(alone["step_seconds"])
