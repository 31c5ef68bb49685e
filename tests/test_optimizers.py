"""Optimizers: schedules, who is decayed, layers kept apart, dims of their state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scaling_lab import dims, models, optimizers
from scaling_lab.optimizers import OptimizerConfig

NAMES = ("adamw", "adafactor", "lion", "muon")


def rates(steps, **fields):
    rate = optimizers.schedule(OptimizerConfig(**fields), steps)
    return np.array([float(rate(jnp.asarray(step))) for step in range(steps)])


# --- Schedules


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
def test_warmup_rises_to_the_peak(name):
    found = rates(100, schedule=name, warmup=10, learning_rate=0.5)
    np.testing.assert_allclose(found[:10], 0.5 * np.arange(1, 11) / 10, rtol=1e-6)
    assert found.max() == found[9]
    assert (np.diff(found[10:]) <= 1e-9).all()


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_end_is_the_final_fraction(name, warmup):
    fields = {"schedule": name, "warmup": warmup, "learning_rate": 2.0, "final": 0.25}
    assert rates(1000, **fields)[-1] == pytest.approx(0.5, rel=0.02)
    assert rates(1000, **fields)[max(0, warmup - 1)] == pytest.approx(2.0, rel=1e-6)


def test_shapes_between():
    fields = {"warmup": 0, "learning_rate": 1.0, "final": 0.0}
    assert rates(100, schedule="constant", **fields).tolist() == [1.0] * 100
    np.testing.assert_allclose(
        rates(100, schedule="linear", **fields), 1 - np.arange(100) / 100, atol=1e-6
    )
    np.testing.assert_allclose(
        rates(100, schedule="cosine", **fields),
        (1 + np.cos(np.pi * np.arange(100) / 100)) / 2,
        atol=1e-6,
    )
    stable = rates(100, schedule="wsd", decay=0.2, **fields)
    assert (stable[:81] == 1.0).all()
    np.testing.assert_allclose(stable[80:], 1 - np.arange(20) / 20, atol=1e-6)


def test_fewer_steps_than_warmup_only_rise():
    found = rates(4, warmup=10, learning_rate=1.0)
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "adam"}, "unknown optimizer 'adam'; did you mean adamw"),
        ({"name": "muom"}, "unknown optimizer 'muom'; did you mean muon"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean cosine"),
        ({"schedule": "?"}, "'[?]'; there are constant, cosine, linear, wsd"),
    ],
)
def test_unknown_names(fields, said):
    with pytest.raises(ValueError, match=said):
        optimizers.make(OptimizerConfig(**fields), 10)


# --- One step on a small model


def small_params(layers=3):
    """Every kind of parameter, two of the matrices large enough to be factored."""
    shapes = {
        "embed_VD": (256, 128),
        "final_norm_D": (128,),
        "layers": {
            "norm_LD": (layers, 128),
            "query_LDNH": (layers, 128, 4, 128),
            "out_LNHD": (layers, 4, 128, 128),
            "query_bias_LNH": (layers, 4, 128),
            "gate_LDF": (layers, 128, 256),
        },
    }
    return draw(shapes, 0)


def draw(shapes, seed):
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    random = np.random.default_rng(seed)
    made = [random.normal(size=shape).astype(np.float32) for shape in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(a) for a in made])


def gradients_like(params):
    return draw(jax.tree.map(jnp.shape, params), 1)


@functools.partial(jax.jit, static_argnums=0)
def stepped(config, params, gradients):
    optimizer = optimizers.make(config, 10)
    state = optimizer.init(params)
    for scale in (1.0, -0.3):
        scaled = jax.tree.map(lambda g, s=scale: s * g, gradients)
        updates, state = optimizer.update(scaled, state, params)
        params = optax.apply_updates(params, updates)
    return params


def step_of(params, gradients, **fields):
    config = OptimizerConfig(**{"warmup": 0, "learning_rate": 0.01} | fields)
    return dims.leaves(jax.device_get(stepped(config, params, gradients)))


# Fails for muon while its AdamW has no decay mask.
@pytest.mark.parametrize("name", NAMES)
def test_decay_spares_biases_and_norms(name):
    params = small_params()
    still = jax.tree.map(jnp.zeros_like, params)
    found = step_of(params, still, name=name, weight_decay=0.5)
    for path, before in dims.leaves(jax.device_get(params)).items():
        spared = "norm" in path or "bias" in path
        assert np.array_equal(found[path], before) == spared, path
        if not spared:  # twice by rate × decay
            np.testing.assert_allclose(found[path], before * 0.995**2, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_decay_may_be_nothing(name):
    params = small_params()
    still = jax.tree.map(jnp.zeros_like, params)
    found = step_of(params, still, name=name, weight_decay=0.0)
    for path, before in dims.leaves(jax.device_get(params)).items():
        np.testing.assert_array_equal(found[path], before, path)


@pytest.mark.parametrize("name", NAMES)
def test_a_stacked_layer_moves_as_if_alone(name):
    """Neither norms nor factors nor orthogonality are taken across layers."""
    params = small_params()
    params["layers"] = jax.tree.map(
        lambda a: a * jnp.reshape(jnp.array([1.0, 5.0, 0.1]), (3, *[1] * (a.ndim - 1))),
        params["layers"],
    )
    gradients = gradients_like(params)
    found = step_of(params, gradients, name=name)
    for layer in range(3):

        def only(tree, layer=layer):
            cut = jax.tree.map(lambda a: a[layer : layer + 1], tree["layers"])
            return {**tree, "layers": cut}

        alone = step_of(only(params), only(gradients), name=name)
        for path in found:
            if path.startswith("layers/"):
                np.testing.assert_allclose(
                    found[path][layer], alone[path][0], rtol=2e-4, atol=2e-6
                )


def test_adafactor_on_layers_is_optax_on_each():
    params = small_params()
    gradients = gradients_like(params)
    found = step_of(params, gradients, name="adafactor", weight_decay=0.0)
    optimizer = optax.adafactor(
        optimizers.schedule(OptimizerConfig(warmup=0, learning_rate=0.01), 10),
        min_dim_size_to_factor=optimizers.FACTOR_FROM,
    )
    for layer in range(3):
        one = jax.tree.map(lambda a, i=layer: a[i], params["layers"])
        own = jax.tree.map(lambda a, i=layer: a[i], gradients["layers"])
        state = optimizer.init(one)
        for scale in (1.0, -0.3):
            scaled = jax.tree.map(lambda g, s=scale: s * g, own)
            updates, state = optimizer.update(scaled, state, one)
            one = optax.apply_updates(one, updates)
        for name, wanted in one.items():
            np.testing.assert_allclose(
                found[f"layers/{name}"][layer], wanted, rtol=2e-4, atol=2e-6
            )


def test_muon_orthogonalises_hidden_matrices_alone():
    """Every singular value of its update is near the same; Adam's are spread."""
    params = small_params()
    gradients = gradients_like(params)
    fields = {"weight_decay": 0.0, "learning_rate": 1.0}
    config = OptimizerConfig(name="muon", warmup=0, **fields)
    optimizer = optimizers.make(config, 10)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    flat = dims.leaves(jax.device_get(updates))
    as_matrix = {
        "layers/gate_LDF": (128, 256),
        "layers/query_LDNH": (128, 512),
        "layers/out_LNHD": (512, 128),
        "embed_VD": (256, 128),
    }
    for path, shape in as_matrix.items():
        update = flat[path][0] if path.startswith("layers/") else flat[path]
        values = np.linalg.svd(update.reshape(shape), compute_uv=False)
        spread = values.max() / values.min()
        if path == "embed_VD":
            assert spread > 3
        else:  # the iteration stops with values between about 0.7 and 1.2
            assert spread < 2
            # Its root mean square is 0.2, as large as Adam's usually is.
            assert np.sqrt(np.mean(update**2)) == pytest.approx(0.2, rel=0.25)
    # AdamW's first step moves every entry by the rate. (Fails while optax's muon passes
    # its own `nesterov` on to AdamW, whose first step is then 1.47 times the rate.)
    for path in ("layers/query_bias_LNH", "layers/norm_LD", "final_norm_D"):
        np.testing.assert_allclose(np.abs(flat[path]), 1.0, rtol=1e-3)


# --- Dims of the state


def dims_of(name, params):
    optimizer = optimizers.make(OptimizerConfig(name=name), 10)
    abstract = jax.eval_shape(lambda: params)
    state = jax.eval_shape(optimizer.init, abstract)
    letters = optimizers.state_dims(state, abstract)
    found = jax.tree_util.tree_leaves_with_path(letters)
    shapes = jax.tree.leaves(state)
    return [
        (jax.tree_util.keystr(path), dims_, leaf.shape)
        for (path, dims_), leaf in zip(found, shapes, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", models.families())
def test_state_dims_fit_the_state(name, family):
    """As many letters as dims, each of its size; what is large has letters."""
    config = models.size(family, "toy")
    params = jax.eval_shape(lambda k: models.family(family).init(config, k), KEY)
    largest = max(leaf.size for leaf in jax.tree.leaves(params))
    covered = 0
    for path, letters, shape in dims_of(name, params):
        covered += np.prod(shape) if letters else 0
        if letters:
            for x, size in zip(letters, shape, strict=True):
                assert size in models.widths(config, x), path
        else:  # a counter or a placeholder of each layer, or of each of its experts
            alike = config.L * (getattr(config, "E", None) or 1)
            assert np.prod(shape) <= alike < largest, path
    assert covered


KEY = jax.random.key(0)


def test_factored_moments_lack_the_dim_they_are_summed_over():
    found = {
        path: letters
        for path, letters, _ in dims_of("adafactor", small_params())
        if ".v_" in path or ".v[" in path
    }

    def of(kind, name):
        (one,) = [v for k, v in found.items() if f".{kind}[" in k and f"'{name}'" in k]
        return one

    assert (of("v_row", "gate_LDF"), of("v_col", "gate_LDF")) == ("LD", "LF")
    assert (of("v_row", "embed_VD"), of("v_col", "embed_VD")) == ("D", "V")
    # Of equal widths the later counts as the larger.
    assert (of("v_row", "query_LDNH"), of("v_col", "query_LDNH")) == ("LDN", "LNH")
    assert of("v", "gate_LDF") == ""  # a placeholder
    assert of("v", "norm_LD") == "LD"  # not factored
    assert of("v_row", "norm_LD") == ""


def test_moments_have_their_parameters_dims():
    found = dims_of("adamw", small_params())
    for kind in (".mu", ".nu"):
        letters = {path.split("'")[-2]: d for path, d, _ in found if kind in path}
        assert letters == {
            name: dims.letters(name)
            for path in dims.leaves(small_params())
            for name in [path.rpartition("/")[2]]
        }
    counters = [d for path, d, _ in found if "count" in path]
    assert counters and not any(counters)


def test_square_norms():
    found = optimizers.square_norms(
        {"a_D": jnp.array([3.0, 4.0]), "l": {"b_L": jnp.array([2.0])}}
    )
    assert {path: float(value) for path, value in found.items()} == {
        "a_D": 25.0,
        "l/b_L": 4.0,
    }
