"""Hybrid sharding: fully sharded inside a group, replicated across groups."""

from scaling_lab.layouts.tables import Layout

TOY = {"data": 2, "fsdp": 4}


def sizes(devices: int) -> dict[str, int]:
    data = 2 if devices % 2 == 0 else 1
    return {"data": data, "fsdp": devices // data}


def layout(data: int, fsdp: int) -> Layout:
    return Layout(
        name=f"hsdp:data={data},fsdp={fsdp}",
        mesh={"data": data, "fsdp": fsdp},
        params={"D": "fsdp"},
        acts={"B": ("data", "fsdp")},
    )
