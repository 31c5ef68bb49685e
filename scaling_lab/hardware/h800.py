"""H800 SXM: an H100 for export, with less NVLink and next to no float64.

Source: DeepSeek-AI 2024 (DeepSeek-V3 Technical Report, arXiv:2412.19437), section 3.1
(nodes of eight, InfiniBand); the rest as an H100.
"""

import dataclasses

from scaling_lab.hardware import h100

assert h100.CHIP.gpu is not None
CHIP = dataclasses.replace(
    h100.CHIP,
    name="h800",
    source=(
        "DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.1; the rest: "
        f"{h100.CHIP.source}"
    ),
    link_bytes_per_second=2e11,
    device_kinds=("NVIDIA H800",),
    aliases=("h800-80", "h800-80gb", "h800-sxm"),
    gpu=dataclasses.replace(h100.CHIP.gpu, name="NVIDIA H800", links=8),
    conflicts=(
        (
            "NVLink, one way: 200 GB/s as sold (400 both ways); DeepSeek-V3's report "
            "reaches 160 (section 3.2.2); the press first wrote 300 both ways. Taken: "
            "as sold."
        ),
    ),
    notes="What is not its NVLink is taken from the H100, clock and memory included.",
)
