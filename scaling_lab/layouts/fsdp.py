"""Fully sharded data parallel, ZeRO-3: weights rest divided, gathered where used."""

from scaling_lab.layouts.tables import Layout

TOY = {"fsdp": 8}


def sizes(devices: int) -> dict[str, int]:
    return {"fsdp": devices}


def layout(fsdp: int) -> Layout:
    return Layout(
        name=f"fsdp:fsdp={fsdp}",
        mesh={"fsdp": fsdp},
        params={"D": "fsdp"},
        acts={"B": "fsdp"},
    )
