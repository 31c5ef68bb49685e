"""Tensor parallel with Megatron's sequence parallelism (Korthikanti et al. 2022)."""

from scaling_lab.layouts.tables import Layout

TOY = {"tensor": 8}


def sizes(devices: int) -> dict[str, int]:
    return {"tensor": devices}


def layout(tensor: int) -> Layout:
    return Layout(
        name=f"tensor_sequence:tensor={tensor}",
        mesh={"tensor": tensor},
        params={"F": "tensor", "N": "tensor", "K": "tensor", "V": "tensor"},
        acts={
            "F": "tensor",
            "N": "tensor",
            "K": "tensor",
            "V": "tensor",
            # Between the blocks nothing contracts, so positions can be divided there.
            "BTD": {"T": "tensor"},
        },
    )
