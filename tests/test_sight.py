"""What layers see: words, configs, every command, and training as one device does."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.training import Trained, run_of, same

from scaling_lab import cost, models
from scaling_lab.config import RunConfig, configure
from scaling_lab.layouts import Layout, Placement
from scaling_lab.models import ops
from scaling_lab.models.shape import sizes
from scaling_lab.parallel.masks import Blocks
from scaling_lab.parallel.sight import Sight

BLOCKS = Blocks.of(8, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
SIGHTS = {
    "window": Sight(window=5),
    "window and global": Sight(window=5, every=2),
    "chunk": Sight(chunk=6),
    "prefix": Sight(prefix=4),
    "blocks": Sight(blocks=BLOCKS),
}


# --- Words


@pytest.mark.parametrize(
    "text", ["causal", "window=64", "window=8,global=4", "chunk=9"]
)
def test_words_say_a_sight_and_a_sight_its_words(text):
    assert Sight.parse(text).text == text
    assert Sight.from_json(dataclasses.asdict(Sight.parse(text))) == Sight.parse(text)


def test_a_map_of_blocks_comes_from_a_file(tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"size": 8, "seen": BLOCKS.seen}))
    assert Sight.parse(f"blocks={file}") == Sight(blocks=BLOCKS)
    file.write_text(json.dumps({"size": 8, "seen": [[0], [0]]}))
    with pytest.raises(ValueError, match="block 1 does not see itself"):
        Sight.parse(f"blocks={file}")
    file.write_text(json.dumps({"size": 8, "seen": [[0], [1, 2]]}))
    with pytest.raises(ValueError, match="block 2 of 2, numbered from 0"):
        Sight.parse(f"blocks={file}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("windw=3", "did you mean window"),
        ("window", "needs a number of at least 1, as window=128"),
        ("window=0", "needs a number of at least 1"),
        ("window=3,window=4", "says window twice"),
        ("global=4", "say what the others see, as window=128,global=4"),
        ("window=3,global=1", "say causal"),
        ("prefix=4,chunk=8", "leave one of them out"),
        ("blocks=nowhere.json", '"size": 64, "seen"'),
    ],
)
def test_words_that_cannot_be(text, why):
    with pytest.raises(ValueError, match=why):
        Sight.parse(text)


def test_families_that_see_otherwise_say_what_they_have():
    with pytest.raises(ValueError, match="window=16,global=2"):
        configure("gemma3", mask="chunk=8")
    with pytest.raises(ValueError, match="leave global=2 out"):
        configure("deepseek", mask="window=8,global=2")
    found = configure("gemma3", mask="window=8,global=3").model
    assert (found.window, found.period) == (8, 3)


def test_a_map_must_be_as_long_as_the_row(tiny):
    model = models.seeing(tiny("llama"), Sight(blocks=BLOCKS))
    with pytest.raises(ValueError, match="--length 32 or less, or a map of 8 blocks"):
        run_of(model, Layout({}), length=64)


def test_a_prefix_leaves_a_row_something_to_learn(tiny):
    model = models.seeing(tiny("llama"), Sight(prefix=33))
    with pytest.raises(ValueError, match="no target in length=32; use prefix=32 or"):
        run_of(model, Layout({}), length=32)
    run_of(models.seeing(tiny("llama"), Sight(prefix=32)), Layout({}), length=32)


def test_a_config_keeps_what_it_sees_through_json():
    config = configure(mask="window=8,global=2")
    again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config and again.id == config.id
    assert configure(mask="causal").id == configure().id != config.id


@pytest.mark.parametrize("kind", SIGHTS)
def test_flops_are_the_pairs_that_are_seen(kind, tiny):
    config = run_of(models.seeing(tiny("llama"), SIGHTS[kind]), Layout({}))
    sight, at_BT = SIGHTS[kind], jnp.arange(config.length)[None]
    batch = {"positions_BT": at_BT, "segments_BT": jnp.zeros_like(at_BT)}
    pairs = int(sight.over(batch).visible_BTS().sum())
    scores = 4 * pairs * config.model.N * config.model.H
    entries = [e for e in cost.record(config) if e.verb == "attend"]
    assert entries[0].flops / entries[0].times == pytest.approx(scores * config.batch)
    told = cost.per_token(config)
    attention = sum(e.flops for e in entries) / config.tokens_per_step
    assert told["masked_attention"] == pytest.approx(told["6N"] + 3 * attention)


@pytest.mark.parametrize(
    "words",
    [
        "explain --mask window=64,global=2",
        "predict --size 8b --target h100:1x8 --layout fsdp=8 --batch 8 --mask chunk=64",
        "sweep --dry-run --mask causal window=16 chunk=32 prefix=8",
    ],
)
def test_commands_take_a_mask(words, call):
    code, _, err = call(words)
    assert code == 0, err


def test_a_narrow_sight_is_predicted_to_be_quicker(call):
    seconds = []
    for mask in ("causal", "window=256,global=4", "window=256"):
        asked = f"predict --size 8b --target h100:8x8 --layout fsdp=64 --mask {mask}"
        _, out, _ = call(f"{asked} --batch 64 --length 65536 --json")
        seconds.append(json.loads(out)["step_seconds"])
    assert seconds[0] > 1.5 * seconds[1] > 1.5 * seconds[2]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_layers_that_see_all_keep_their_experts(family):
    """Runs of like layers are no kind of their own to a prediction."""
    runs = models.seeing(models.size(family, "toy"), Sight(window=8, every=2))
    alike = models.seeing(models.size(family, "toy"), Sight(window=8))
    found = dict(sizes(runs)) | {"window_share": 1.0}
    assert found == sizes(alike)


# --- Models that see so


#: Two kinds of layers, and a map over divided positions; the rest is slow.
QUICK = {
    ("window and global", "fsdp=4,tensor=2+sequence"),
    ("blocks", "data=2,context=4+ring"),
}


def cases():
    for kind in SIGHTS:
        for layout in ("fsdp=4,tensor=2+sequence", "data=2,context=4+ring"):
            slow = () if (kind, layout) in QUICK else (pytest.mark.slow,)
            yield pytest.param(kind, layout, marks=slow, id=f"{kind}-{layout}")


@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize(("kind", "layout"), list(cases()))
def test_a_layout_trains_as_one_device(kind, layout, tiny, batches):
    model = models.seeing(tiny("llama"), SIGHTS[kind])
    wanted = Trained(run_of(model, Layout({})), batches)
    same(Trained(run_of(model, layout), batches), wanted)


@pytest.mark.parametrize("kind", SIGHTS)
def test_a_cache_sees_what_a_row_does(kind, tiny):
    model = models.seeing(tiny("llama"), SIGHTS[kind])
    family, length, first = models.family_of(model), 24, 13
    params = family.init(model, jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (2, length), 0, model.V)
    place = Placement(Layout({}))

    def batch(start, stop):
        at_BT = jnp.broadcast_to(jnp.arange(start, stop)[None], (2, stop - start))
        own_BT = tokens_BT[:, start:stop]
        zeros_BT = jnp.zeros_like(at_BT)
        return {"tokens_BT": own_BT, "positions_BT": at_BT, "segments_BT": zeros_BT}

    wanted = family.hidden(model, params, batch(0, length), place).hidden_BTD
    cache, parts = ops.empty_cache(model, 2, length, jnp.float32), []
    for start, stop in ((0, first), *((n, n + 1) for n in range(first, length))):
        out = family.hidden(model, params, batch(start, stop), place, cache)
        cache = out.cache
        parts.append(out.hidden_BTD)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), wanted, atol=1e-5)


def test_what_a_prefix_shows_is_no_target(tiny, batches):
    model = models.seeing(tiny("llama"), Sight(prefix=4))
    trained = Trained(run_of(model, Layout({})), batches[:1])
    batch = batches[0]
    shown = batch["positions_BT"] < 3
    hidden = {**batch, "targets_BT": np.where(shown, -1, batch["targets_BT"])}
    again = Trained(run_of(model, Layout({})), [hidden])
    assert again.metrics[0]["loss"] == trained.metrics[0]["loss"]
    assert shown.any()
