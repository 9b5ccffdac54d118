"""scripts/showcase.py: the page that it writes of a benchmark's folder."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def showcase(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("showcase")


def test_the_page_names_pictures_and_sheets_that_are_there(showcase: Any, tmp_path: Path) -> None:
    rows = []
    for arm, folder in zip(showcase.PLAIN, ("best-of-n", "seed-pruning-draft-share-0"), strict=True):
        for index in range(2):
            image = Path(folder) / f"{index:05d}" / "samples" / "00000.png"
            (tmp_path / "bench" / image).parent.mkdir(parents=True)
            Image.new("RGB", (32, 16), "red").save(tmp_path / "bench" / image)
            Image.new("RGB", (8, 8)).save(tmp_path / "bench" / image.parents[1] / "sheet-00000.png")
            rows.append({
                "algorithm": arm, "image": image.as_posix(), "prompt": f"prompt {index}", "index": index, "repeat": 0,
                "seed": 7, "scores": {"a": 0.5}, "metrics": {"b": 2.0}, "spent": {"nfe": 40},
            })  # fmt: skip
    (tmp_path / "bench" / "results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "bench" / "bench.json").write_text(json.dumps({"budget": "40nfe", "reward": "a", "report": "b"}))
    (tmp_path / "bench" / "summary.md").write_text(
        "| best-of-n                  | 1 |\n| seed-pruning draft_share=0 | 2 |"
    )

    showcase.write_page(tmp_path, "my/model", showcase.PLAIN)
    page = (tmp_path / "showcase.md").read_text()
    assert "| best-of-N | 1 |\n| seed pruning | 2 |" in page
    assert page.count("a 0.5, b 2<br>seed 7, 40 NFE") == 4
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) == 8
    assert all((tmp_path / link).is_file() for link in links)
    assert {Image.open(path).size for path in (tmp_path / "winners").iterdir()} == {(384, 192)}


def test_another_model_needs_a_reward(
    showcase: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["showcase.py", "--model", "my/model"])
    with pytest.raises(SystemExit):
        showcase.main()
    assert "--reward: by what are images of my/model to be chosen?" in capsys.readouterr().err
