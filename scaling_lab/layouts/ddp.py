"""Data parallel: every device holds everything and sees its own sequences."""

from scaling_lab.layouts.tables import Layout

TOY = {"data": 8}


def sizes(devices: int) -> dict[str, int]:
    return {"data": devices}


def layout(data: int) -> Layout:
    return Layout(name=f"ddp:data={data}", mesh={"data": data}, acts={"B": "data"})
