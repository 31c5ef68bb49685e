"""Three steps of training, brought to the host to be compared.

One compiled program answers for a case: its train step. AdamW's first moment after one
step is ``(1 - b1)`` times the gradient, so gradients are read off the state.
"""

import dataclasses
import importlib

import jax
import numpy as np
import optax

from scaling_lab import dims, layouts, train
from scaling_lab.config import RunConfig, validate
from scaling_lab.optimizers import OptimizerConfig

COMPOSED = [
    "fsdp=4,tensor=2+sequence",
    "data=2,fsdp=2,tensor=2+sequence+zero1",
    "data=2,tensor=4",
    "data=8+zero2",
    "fsdp=8+gather_once",
    "data=2,context=4",
    "fsdp=2,context=2,tensor=2+sequence+ring",
    "fsdp=2,context=2,tensor=2+sequence+ulysses",
]
LAYOUTS = [*layouts.names(), *COMPOSED]
#: For families that have experts; to others this axis is one more of data.
EXPERTS = [
    "expert=8",
    "expert=4,fsdp=2",
    "expert=2,fsdp=2,tensor=2",
]
B1 = 0.9
#: A large epsilon keeps AdamW from magnifying the rounding of gradients near zero.
ADAMW = OptimizerConfig(b1=B1, epsilon=1e-4, learning_rate=1e-2, warmup=1, clip=None)


def of_text(text):
    if "=" in text or ":" in text:
        return layouts.parse(text, 8)
    file = importlib.import_module(f"scaling_lab.layouts.{text}")
    return file.layout(**file.TOY)


def run_of(model, layout, **changes):
    """A validated config of three steps."""
    layout = of_text(layout) if isinstance(layout, str) else layout
    fields = {"batch": 8, "length": 32, "steps": 3, "optimizer": ADAMW} | changes
    config = RunConfig(model, layout, **fields)
    validate(config)
    return config


def reads_gradients(config):
    """Whether a run's gradients can be read off its state."""
    return config.optimizer.name == "adamw" and config.optimizer.moments == "float32"


def moments(state):
    return dims.leaves(optax.tree_utils.tree_get(state.optimizer, "mu"))


def on_host(tree):
    return jax.tree.map(np.asarray, jax.device_get(tree))


def resting(state):
    return [(leaf.sharding, leaf.ndim) for leaf in jax.tree.leaves(state)]


#: First parameters on the host, by what they depend on; a layout only places them.
DRAWN = {}


def begun(program):
    """A run's first state, drawn once for all layouts: to compile a draw takes long.

    How a model sees and routes changes which parameters it has, and not how they are
    drawn; moments begin as its optimizer says.
    """
    config = program.config
    shapes = tuple((k, a.shape) for k, a in dims.leaves(config.abstract_params).items())
    key = (shapes, config.family, config.seed, config.parameters, config.mup)
    if key not in DRAWN:
        state = program.init()
        DRAWN[key] = on_host(state.params)
        return state
    moments = jax.jit(
        lambda: program.init().optimizer, out_shardings=program.shardings.optimizer
    )
    state = program.shardings
    return dataclasses.replace(
        state,
        step=jax.device_put(np.zeros((), np.int32), state.step),
        params=jax.device_put(DRAWN[key], state.params),
        optimizer=moments(),
    )


class Trained:
    """Three steps of a config, on the host, and the program that made them.

    Args:
      draws: the run draws its first state itself, whoever has drawn the same before.
    """

    def __init__(self, config, batches, draws=False):
        self.config = config
        self.program = program = train.make_program(config)
        state = program.init() if draws else begun(program)
        self.before = dims.leaves(on_host(state.params))
        self.rested = resting(state)
        self.metrics = []
        for number, batch in enumerate(batches):
            state, metrics = program.step(state, program.put(batch))
            self.metrics.append(on_host(dict(metrics)))
            if number == 0 and reads_gradients(config):
                first = on_host(moments(state))
                self.gradients = {k: m / (1 - B1) for k, m in first.items()}
        self.state = state
        self.after = dims.leaves(on_host(state.params))

    @property
    def update(self):
        return {path: self.after[path] - self.before[path] for path in self.after}


def total(arrays):
    return np.sqrt(sum(float(np.sum(np.square(a))) for a in arrays.values()))


#: A head's norms: their gradients are small sums of large numbers of both signs.
HEADS = ("query_norm_LH", "key_norm_LH")


def close(found, wanted, bound, noise=1e-6, own=None):
    """Relative difference of norms per tensor, at most `bound`, or its `own` by name.

    A gradient that is zero on paper (a key's bias shifts every score of a row alike) is
    rounding on every machine, so a difference below `noise` of the whole passes.
    """
    floor = noise * total(wanted)
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        error = np.linalg.norm(found[path] - array)
        norm = np.linalg.norm(array)
        near = (own or {}).get(path.rpartition("/")[2], bound)
        assert error <= max(near * norm, floor), (path, error, norm)


def same(
    found,
    wanted,
    loss=1e-5,
    gradient=1e-4,
    update=1e-3,
    noise=1e-6,
    turned=None,
    heads=None,
):
    """Two trainings agree: start bit for bit, losses, gradients, where they end.

    A router's bias moves by steps of one size: `turned` is how near, if a token that
    turns to another expert may turn such a step. `heads` is how near three steps bring
    a head's norms, where codes of 8 bits may fall to either side: which do depends on
    the processor (0.146 of Gemma 3's key norm, seen on one of two).
    """
    bias = {} if turned is None else {"router_bias_LE": turned}
    norm = {} if heads is None else dict.fromkeys(HEADS, heads)
    for path, array in wanted.before.items():
        np.testing.assert_array_equal(found.before[path], array, path)
    for left, right in zip(found.metrics, wanted.metrics, strict=True):
        for key in ("loss", "nll", "z", "gradient_norm"):
            bound = loss if key != "gradient_norm" else gradient
            np.testing.assert_allclose(left[key], right[key], bound, err_msg=key)
    if reads_gradients(found.config):
        close(found.gradients, wanted.gradients, gradient, noise, bias)
    else:  # moments of few bits tell no gradients, but the step tells their norms
        close(*map(norms, (found, wanted)), gradient, noise, bias)
    close(found.update, wanted.update, update, noise, bias | norm)


def norms(trained):
    """Of every gradient of the first step, as arrays of one number."""
    squares = trained.metrics[0]["square_norms"]
    return {path: np.sqrt(square)[None] for path, square in squares.items()}
