"""Tensor parallel: heads, feed-forward and vocabulary divided (Shoeybi et al. 2019)."""

from scaling_lab.layouts.tables import Layout

TOY = {"tensor": 8}


def sizes(devices: int) -> dict[str, int]:
    return {"tensor": devices}


def layout(tensor: int) -> Layout:
    return Layout(
        name=f"tensor:tensor={tensor}",
        mesh={"tensor": tensor},
        params={"F": "tensor", "N": "tensor", "K": "tensor", "V": "tensor"},
        acts={"F": "tensor", "N": "tensor", "K": "tensor", "V": "tensor"},
    )
