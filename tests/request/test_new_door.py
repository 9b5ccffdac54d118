"""A door that is added: the file of the how-to, run as it stands, with good and hostile
requests."""

from __future__ import annotations

import re
import subprocess
import sys

from PIL import Image

from ttsnap.results.record import read_record

from ..copied import ROOT, recipe  # noqa: TID252

PAGE = recipe("A door")
REFUSED = {
    "prompt: a red circle\nsearch: /etc/tuned.json": "no search '/etc/tuned.json' here",
    "prompt: a red circle\nsearch: {name: nested, first: mine.json}": "no file, got 'mine.json'",
    "prompt: a red circle\nreward: os.py:system": (
        "unknown reward 'os.py:system'; choose one of scenes, brightness"
    ),
    "prompt: a red circle\nbudget: 2001nfe": "at most 2000 evaluations",
    "prompt: a red circle\nsteps: ten": "steps must be",
    "prompt: a red circle\nn: 2": "at most 1 images",
    "prompt: a red circle\nmodel: [1]": "model must be",
    "prompt: a red circle\nseeed: 3": "seeed is unknown; did you mean seed?",
    "prompt: a red circle\nimage: /etc/passwd": "image is unknown",
    "steps: 4": "prompt is missing",
    "- a red circle": "write fields",
    "prompt: !!python/object:os.system x": "",
    "prompt: three pink elephants\nsteps: 4\nbudget: 4nfe": "elephants",
}


def test_the_door_of_the_how_to_answers_what_is_asked_and_refuses_the_rest(tmp_path):
    code = (ROOT / "tests" / "recipes" / "watch_folder.py").read_text(encoding="utf-8")
    (wish,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)
    assert len(code.splitlines()) <= 150
    folder, script = tmp_path / "wishes", tmp_path / "watch_folder.py"
    folder.mkdir()
    script.write_text(code)
    (folder / "fox.yaml").write_text(wish)
    for number, text in enumerate(REFUSED):
        (folder / f"bad{number:02d}.yaml").write_text(text)
    (folder / "large.yaml").write_text("x" * 20_000)
    command = [
        sys.executable,
        str(script),
        str(folder),
        "--rewards",
        "scenes",
        "brightness",
        "--once",
    ]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    told = read_record(folder / "fox.png").to_json()
    assert (told["prompt"], told["search"]["algorithm"]) == (
        "two red circles and a blue square",
        "best-of-n",
    )
    assert told["search"]["nfe"] <= 120
    assert Image.open(folder / "fox.png").size == (32, 32)
    for number, said in enumerate(REFUSED.values()):
        assert said in (folder / f"bad{number:02d}.txt").read_text(), number
    assert (folder / "large.txt").read_text()
    assert len(list(folder.glob("*.png"))) == 1
