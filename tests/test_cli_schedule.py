"""``scaling-lab schedule``: text, pictures, JSON and what it refuses."""

import json
import xml.etree.ElementTree as ET

import pytest

SVG = "{http://www.w3.org/2000/svg}"


def test_text_picture_with_its_costs(call):
    code, out, _ = call("schedule --kind 1f1b --stages 4 --microbatches 8")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "1f1b: 4 stages, 8 microbatches"
    assert lines[4].split()[:5] == ["stage", "3", "·", "·", "·"]
    assert "bubble 27.3%: 33 from start to end, of which a stage works 24" in out
    assert "held at once, by stage: 4, 3, 2, 1" in out


def test_json_has_every_task(call):
    words = "schedule --kind zb_h1 --stages 3 --microbatches 4 --send 0.5 --json"
    facts = json.loads(call(words)[1])
    assert [len(tasks) for tasks in facts["tasks"]] == [12, 12, 12]
    ends = [task["end"] for tasks in facts["tasks"] for task in tasks]
    assert facts["time"] == max(ends) > 3 * 4 + 2
    idle = facts["time"] * 3 - sum(
        task["end"] - task["start"] for tasks in facts["tasks"] for task in tasks
    )
    assert facts["bubble"] == pytest.approx(idle / facts["time"] / 3)


def test_svg_stands_alone(call, tmp_path):
    words = "schedule --kind interleaved --virtual 2 --figure a.svg"
    assert call(words)[0] == 0
    root = ET.parse(tmp_path / "a.svg").getroot()
    assert root.tag == f"{SVG}svg"
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert len(titles) == 1 + 4 * 2 * 8 * 2  # stages × F and B × microbatches × chunks
    assert "class" not in {
        key for rect in root.iter(f"{SVG}svg") for key in rect.attrib
    }


def test_png(call, tmp_path):
    pytest.importorskip("matplotlib")
    assert call("schedule --figure a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind 1f2b", "did you mean 1f1b"),
        ("--kind gpipe --virtual 2", "or use the schedule interleaved"),
        ("--kind interleaved --virtual 2 --microbatches 6", "microbatches: 4, 8"),
        ("--layers 3", "3 layers are too few for 4 chunks"),
        ("--figure a.gif", "pictures are .svg or .png"),
        ("--forward -1", "cost forward=-1.0: must be a number of at least 0"),
        ("--stages 0", "stages=0: must be at least 1"),
    ],
)
def test_refusals(call, words, message):
    code, out, err = call(f"schedule {words}")
    assert code == 2 and message in err and not out


def test_costs_far_apart_stay_a_picture(call):
    code, out, _ = call("schedule --kind zb_h1 --weight-gradient 0.0001")
    assert code == 0 and len(out) < 20_000
