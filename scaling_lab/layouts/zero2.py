"""ZeRO-2: gradients divided too, reduced where their optimizer state rests."""

from scaling_lab.layouts.tables import Layout

TOY = {"data": 8}


def sizes(devices: int) -> dict[str, int]:
    return {"data": devices}


def layout(data: int) -> Layout:
    return Layout(
        name=f"zero2:data={data}",
        mesh={"data": data},
        acts={"B": "data"},
        grads={"D": "data"},
        optimizer={"D": "data"},
    )
