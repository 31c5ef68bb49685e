"""Fully sharded × tensor parallel: weights rest divided over both axes."""

from scaling_lab.layouts.tables import Layout

TOY = {"fsdp": 4, "tensor": 2}


def sizes(devices: int) -> dict[str, int]:
    tensor = 2 if devices % 2 == 0 else 1
    return {"fsdp": devices // tensor, "tensor": tensor}


def layout(fsdp: int, tensor: int) -> Layout:
    return Layout(
        name=f"fsdp_tensor:fsdp={fsdp},tensor={tensor}",
        mesh={"fsdp": fsdp, "tensor": tensor},
        params={
            "D": "fsdp",
            "F": "tensor",
            "N": "tensor",
            "K": "tensor",
            "V": "tensor",
        },
        acts={
            "B": "fsdp",
            "F": "tensor",
            "N": "tensor",
            "K": "tensor",
            "V": "tensor",
        },
    )
