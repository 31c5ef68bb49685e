"""What things cost on a chip: what is physical, and what was fitted.

The one table that a compiled step is priced with. `Physics` are the vendor's facts of
one JAX device, taken from `hardware`, and a clock. `Efficiencies` are the shares of
them that are reached, each with where its value comes from: they may be fitted again
and frozen; nothing else in this room holds a number that could be.

The clock of a TPU is the one that the compiler's own estimates imply. A product of two
n x n bfloat16 matrices, compiled alone by libtpu 0.0.42 (n = 2048, 4096, 8192, 16384),
reached at best this many FLOPs an estimated cycle: v4 122831, v5e 126898, v5p 252216,
v6e 455675, tpu7x 444834. Above them are 131072, 131072, 262144, 524288 and 524288, the
work of the 128 x 128 (from v6e on 256 x 256) multipliers of a device, and its peak
divided by these is its clock: 1.05, 1.5, 1.75, 1.75 and 2.2 GHz. So v5p's cycles are
of both its cores at once, v4's and 7x's of one core or chiplet, which is one device.
"""

from __future__ import annotations

import dataclasses

from scaling_lab.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Physics:
    """The vendor's facts of one JAX device; what is not known is `None`.

    Attributes:
      flops_per_second: peak by precision.
      hbm_bytes: what a program may use. hbm_bytes_per_second: its bandwidth.
      link_bytes_per_second: one way, all links of the scale-up network together.
      network_bytes_per_second: one way into the data-centre network.
      torus_dims: of the scale-up network; 0 where it is switched.
      clock_hz: of the compiler's cycles; `None` where it estimates none.
      cores: that one product is divided over, in whole tiles (GPU).
      matrix_side: of a systolic matrix unit, which narrower factors leave partly idle;
        1 where there is none.
    """

    flops_per_second: dict[str, float]
    hbm_bytes: int | None
    hbm_bytes_per_second: float | None
    link_bytes_per_second: float | None
    network_bytes_per_second: float | None
    torus_dims: int
    clock_hz: float | None
    cores: int
    matrix_side: int = 1


@dataclasses.dataclass(frozen=True)
class Efficiencies:
    """What of the physics is reached. Shares are of 1; the rest has its unit.

    Attributes:
      cycles: of the compiler's estimated speed that a run has.
      matmul: of the peak by a large product. matmul_depth: contracted elements at
        which half of that is lost.
      attention: of the peak by a fused attention kernel, forward and backward, whose
        heads are as wide as a matrix unit. triton_attention: by `parallel.triton`.
      memory: of the HBM's bandwidth.
      links, network: of their rates by large messages.
      link_half_bytes: a message of this size reaches half of it.
      hop_seconds: to start a collective, and again for every hop it takes.
      launch_seconds: between two kernels.
      host_bytes_per_second: of one device to its host's memory and back.
      source: where the values come from.
    """

    cycles: float = 1.0
    matmul: float = 0.8
    matmul_depth: float = 0.0
    attention: float = 0.5
    triton_attention: float = 0.35
    memory: float = 0.9
    links: float = 0.9
    network: float = 0.8
    link_half_bytes: float = 0.0
    hop_seconds: float = 1e-6
    launch_seconds: float = 0.0
    host_bytes_per_second: float = 1.6e10
    source: str = "assumed"


_TPU = Efficiencies(
    attention=0.5,
    links=0.9,
    source=(
        "assumed: hop of 1e-6 s (jax-ml/scaling-book tpus.md); a link reaches 45 of 50 "
        "or 90 of 100 GB/s (same); attention at half of the peak"
    ),
)
#: Fitted on seven published runs and judged by seven others (`experiments.gpu_prices`,
#: which prints both errors), most of them PyTorch's. Newer chips take the H100's.
_H100 = Efficiencies(
    matmul=0.61,
    matmul_depth=96.0,
    attention=0.519,
    memory=0.874,
    links=0.813,
    link_half_bytes=6e7,
    hop_seconds=4e-6,
    launch_seconds=2e-6,
    host_bytes_per_second=5e10,
    source=(
        "matmul, attention, memory, links: fitted on mosaicml/llm-foundry, NVIDIA/"
        "JAX-Toolbox and pytorch/torchtitan (results/gpu_prices_fit.json); assumed: "
        "150 of 450 GB/s by all-reduces of 58 MB (jax-ml/scaling-book gpus.md); "
        "triton_attention: FlashAttention-2 reaches 35 % (Shah et al. 2024, abstract)"
    ),
)
#: FlashAttention-2 reaches 50 to 73 % here (Dao 2023, abstract).
_A100 = dataclasses.replace(_H100, matmul=0.773, triton_attention=0.5)

#: The table that is fitted and frozen: chip or vendor -> efficiencies.
FITTED: dict[str, Efficiencies] = {
    "Google": _TPU,
    "NVIDIA": _H100,
    "a100": _A100,
    "a100-40": _A100,
}


def physics(chip: Chip) -> Physics:
    """The facts of one of a chip's JAX devices."""
    share = chip.devices_per_chip
    peaks = {name: peak / share for name, peak in chip.flops_per_second.items()}
    return Physics(
        flops_per_second=peaks,
        hbm_bytes=chip.device_hbm_bytes,
        hbm_bytes_per_second=_divided(chip.hbm_bytes_per_second, share),
        link_bytes_per_second=_divided(chip.link_bytes_per_second, share),
        network_bytes_per_second=_divided(chip.network_bytes_per_second, share),
        torus_dims=chip.torus_dims,
        clock_hz=chip.clock_hz,
        cores=max(1, (chip.cores_per_chip or 1) // share),
        matrix_side=chip.matrix_side or 1,
    )


def efficiencies(chip: Chip) -> Efficiencies:
    """The chip's own row, or its vendor's, or what is assumed of any."""
    return FITTED.get(chip.name) or FITTED.get(chip.vendor) or Efficiencies()


def _divided(value: float | None, share: int) -> float | None:
    return None if value is None else value / share
