"""ZeRO-1: data parallel with the optimizer state divided (Rajbhandari et al. 2020)."""

from scaling_lab.layouts.tables import Layout

TOY = {"data": 8}


def sizes(devices: int) -> dict[str, int]:
    return {"data": devices}


def layout(data: int) -> Layout:
    return Layout(
        name=f"zero1:data={data}",
        mesh={"data": data},
        acts={"B": "data"},
        optimizer={"D": "data"},
    )
