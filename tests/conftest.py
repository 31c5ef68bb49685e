"""Eight simulated devices, strict ranks, warnings are errors (see pyproject.toml)."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
