"""The recipe of a reward in docs/howto/extend.md, run as it stands: as a file of a reader, and as
part of ttsnap."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ttsnap import Budget, make_algorithm, search
from ttsnap.cli import main
from ttsnap.core.outcome import chosen
from ttsnap.engine.gradients import check_reward
from ttsnap.engine.live import LiveEngine
from ttsnap.files.pictured import video_pixels
from ttsnap.options.engine import EngineOptions
from ttsnap.results import save_video
from ttsnap.results.media import frames_of
from ttsnap.reward_models.registry import REWARDS, make_reward
from ttsnap.scenes import check, detect, parse

from ..clips import Clips, Mean  # noqa: TID252
from ..copied import recipe  # noqa: TID252

run_search = search

PAGE = recipe("A reward")
FUNCTIONS, CLASS, NEEDY, MODEL, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_functions_and_a_class_in_a_file(tmp_path):
    (tmp_path / "my_reward.py").write_text(FUNCTIONS + CLASS)
    score, clear, redness = (
        make_reward(f"{tmp_path}/my_reward.py:{n}") for n in ("score", "clear_first", "Redness")
    )
    for reward in (score, redness):
        torch.testing.assert_close(reward(IMAGES, ["a", "b"], None), IMAGES[:, 0].mean((1, 2)))
    assert clear(IMAGES, ["a", "b"], torch.tensor([1.0, 0.5]))[0] == 0
    assert (redness.name, redness.flops) == ("redness", 0.0)
    with pytest.raises(ValueError, match=r"redness .*prompt"):
        redness.check([" "])


def test_rewards_of_edits_and_of_videos(tmp_path):
    (tmp_path / "my_reward.py").write_text(NEEDY)
    colours, motion = (
        make_reward(f"{tmp_path}/my_reward.py:{name}") for name in ("keeps_colours", "Motion")
    )
    live = LiveEngine(Clips(5, sources=IMAGES), [colours, motion], EngineOptions(frames=2))
    (result,) = search(["a"], make_algorithm("best-of-n", n=2), live)
    video, source = result.best.pixels.double(), IMAGES[0].double()
    by_hand = -(video[[1, 3]].mean((2, 3)) - source.mean((1, 2))).abs().mean()
    assert result.best.scores["keeps_colours"] == pytest.approx(float(by_hand), abs=1e-6)
    assert result.best.scores["motion"] == pytest.approx(
        float(video.diff(dim=0).abs().mean()), abs=1e-6
    )
    with pytest.raises(ValueError, match=r"'keeps_colours' .*edited"):
        LiveEngine(Clips(5), [colours])


def test_the_page_on_videos(tmp_path, monkeypatch):
    """Its code, with the toy model in the place of a pipeline."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "search_videos.md").read_text(
        encoding="utf-8"
    )
    block = next(
        code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "save_video(" in code
    )
    code = block[block.index("out = pipe(") :]  # what comes before loads a model

    def pipe(prompt, *, search, reward, frames, budget, **size):
        assert size["num_frames"] == 81
        assert reward in REWARDS
        live = LiveEngine(Clips(81), [make_reward(Mean())], EngineOptions(frames=frames))
        found = run_search([prompt], make_algorithm(search), live, Budget.parse(budget))
        return SimpleNamespace(
            search=found, frames=[frames_of(result.best.pixels) for result in found]
        )

    monkeypatch.chdir(tmp_path)
    exec(code, {"pipe": pipe, "save_video": save_video})
    assert video_pixels((tmp_path / "best.webp").read_bytes(), "best.webp", ("WEBP",)).shape == (
        81,
        4,
        6,
        3,
    )
    assert "numbers 10, 30, 50 and 70" in page
    assert chosen(81, 4) == [10, 30, 50, 70]


def test_one_file_and_a_line_make_a_reward_of_the_toolkit(monkeypatch):
    """With ttsnap as it is after the two edits."""
    (entries,) = (node.value for node in ast.parse(LINE).body if isinstance(node, ast.Assign))
    ((added, place),) = ast.literal_eval(entries).items()
    module = ModuleType(place.partition(":")[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(MODEL, module.__name__, "exec"), vars(module))
    monkeypatch.setitem(REWARDS, added, place)
    reward = make_reward(added)
    halves = torch.zeros(1, 3, 4, 4)
    halves[..., 2:] = 1  # one of three steps across is 1, none downwards
    assert reward(halves, [""], None).item() == pytest.approx(1 / 3)
    check_reward(reward)  # ValueError where guidance could not follow it
    live = LiveEngine(Clips(2), [reward], EngineOptions(frames=1))
    (result,) = search(["a"], make_algorithm("best-of-n", n=4), live)
    assert result.best.reward == max(result.particles.scores[:, -1, 0]) > 0
    assert list(result.best.scores) == [reward.name] == [added]


def test_a_red_circle_turns_blue_in_its_place(tmp_path, monkeypatch):
    """As docs/howto/edit_images.md says, at less than half of its budget."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "howto" / "edit_images.md").read_text()
    exec(
        next(
            block
            for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
            if "red.png" in block
        ),
        {},
    )
    (line,) = re.findall(r"^    ttsnap (generate .a blue circle.*)$", page, re.MULTILINE)
    how = ["--device", "cpu", "--out", "o"]
    assert main([*shlex.split(line.replace("20images", "8images")), *how]) == 0
    paths = ("red.png", next(Path("o").glob("01-*.png")))
    red, blue = (
        np.asarray(Image.open(path).convert("RGB"), float).transpose(2, 0, 1) / 255
        for path in paths
    )
    assert check(blue[None], [parse("a blue circle")])[1][0]
    before, after = (detect(picture[None].astype(np.float32)) for picture in (red, blue))
    assert np.abs([*(before.x - after.x), *(before.y - after.y)]).max() < 2
