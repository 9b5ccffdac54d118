"""The nodes over a double of ComfyUI: what a stranger's workflow may give them, and what an operator offers beyond."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.comfyui import double_nodes, hostile
from tests.comfyui.test_pack import PACK, pack
from tests.watch import MODULE, planted, watched
from ttsnap.comfyui import inputs


@pytest.fixture(autouse=True)
def comfyui() -> Iterator[None]:
    with double_nodes.nodes_of_comfyui():
        yield


def offered(folder: Path, rewards: Any = None) -> dict[str, Any]:
    """The nodes of a copy of the pack, by id, beside which the operator named rewards."""
    shutil.copy(PACK / "__init__.py", folder)
    if rewards is not None:
        (folder / "rewards.json").write_text(rewards if isinstance(rewards, str) else json.dumps(rewards))
    entry = asyncio.run(pack(folder).comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(entry.get_node_list())}


def linked(nodes: dict[str, Any]) -> dict[str, Any]:
    """What links carry, by type."""
    reward = nodes["TtsnapReward"].execute(name="brightness", weight=1.0, device="cpu").result[0]
    budget = nodes["TtsnapBudget"].execute(images=1.0, evaluations=0, decodes=0, seconds=0.0).result[0]
    found = {**double_nodes.objects(), "TTSNAP_REWARD": reward, "TTSNAP_BUDGET": budget}
    drafter = nodes["TtsnapDrafter"].execute(model=found["MODEL"], cfg=1.0, calls=1, first_time=1.0).result[0]
    return {**found, "TTSNAP_DRAFTER": drafter}


KEYS = [f"Ttsnap{name}" for name in ("SearchSampler", "Reward", "RewardbyNode", "Budget", "Drafter", "PickBest")]


def test_these_are_all_nodes(tmp_path: Path) -> None:
    assert list(offered(tmp_path)) == KEYS


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return tmp_path.parent / f"{tmp_path.name}-outside"


@pytest.mark.parametrize("key", KEYS)
def test_no_link_imports_opens_or_asks_anything(
    key: str, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, nodes = planted(outside, monkeypatch), offered(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    good = hostile.given_to(nodes[key], linked(nodes))
    hostile.use(nodes[key].execute(**good).result)  # and what is imported late is there
    with watched(tmp_path) as watch:
        wrong = hostile.attack(nodes[key], good, hostile.carried(named, outside), watch)
    assert not wrong, "\n".join(wrong)
    assert MODULE not in sys.modules


def test_the_attack_finds_a_node_that_takes_anything(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the test above could not fail."""
    named, nodes = planted(outside, monkeypatch), offered(tmp_path)
    good = hostile.given_to(nodes["TtsnapRewardbyNode"], linked(nodes))
    monkeypatch.setattr(inputs, "checked", lambda declared, given: given)
    with watched(tmp_path) as watch:
        wrong = hostile.attack(nodes["TtsnapRewardbyNode"], good, hostile.carried(named, outside), watch)
    assert any("opened" in one and "secret.json" in one for one in wrong)


@pytest.mark.parametrize(
    ("key", "given", "why"),
    [
        ("TtsnapReward", {"name": "pickscor"}, "unknown name 'pickscor'; did you mean pickscore?"),
        ("TtsnapReward", {"name": "judge:yes"}, "unknown name 'judge:yes'"),
        ("TtsnapReward", {"weight": float("nan")}, "weight must be a finite number, got nan"),
        ("TtsnapReward", {"more": [["brightness", 1.0]]}, r"more takes what another node made.* \[\['brightness'"),
        ("TtsnapBudget", {"evaluations": 10**12}, "evaluations must be at most 1000000000, got 1000000000000"),
        ("TtsnapSearchSampler", {"steps": 20.5}, "steps must be a whole number, got 20.5"),
        ("TtsnapSearchSampler", {"sampler_name": "dpm_adaptive"}, "unknown sampler_name 'dpm_adaptive'"),
        ("TtsnapSearchSampler", {"drafter": max}, "drafter takes what another node made"),
        ("TtsnapSearchSampler", {"prompt": "x" * 200_000}, "prompt must be text of at most 100000 characters"),
        ("TtsnapRewardbyNode", {"also": "a/path"}, "also takes what another node made, and no text"),
        ("TtsnapPickBest", {"keep": []}, r"keep must be a whole number, got \[\]"),
        ("TtsnapPickBest", {"latent": {"samples": torch.zeros(3, 2, 4, 4)}}, "got 3 latents of 2 images"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(key: str, given: dict[str, Any], why: str, tmp_path: Path) -> None:
    nodes = offered(tmp_path)
    with pytest.raises(ValueError, match=why):
        nodes[key].execute(**{**hostile.given_to(nodes[key], linked(nodes)), **given})


def test_the_best_images_come_with_their_latents(tmp_path: Path) -> None:
    nodes = offered(tmp_path)
    images, latent = torch.tensor([0.2, 0.9, 0.4]).view(3, 1, 1, 1).expand(3, 8, 8, 3), {"samples": torch.arange(3.0)}
    given = {**hostile.given_to(nodes["TtsnapPickBest"], linked(nodes)), "images": images, "keep": 2}
    found, kept, scores, report = nodes["TtsnapPickBest"].execute(**given | {"latent": latent}).result
    assert (found["samples"].tolist(), kept[:, 0, 0, 0].tolist()) == ([1.0, 2.0], images[[1, 2], 0, 0, 0].tolist())
    assert scores == sorted(scores, reverse=True)
    assert len(report.splitlines()) == 3
    assert nodes["TtsnapPickBest"].execute(**given | {"latent": None}).result[0] is None


def test_an_operator_offers_rewards_of_their_own_by_name(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(outside, monkeypatch)
    rewards = {"mine": f"{outside}/{MODULE}.py:score", "house": "http://127.0.0.1:9", "taste": "judge:rubric:model=m"}
    with watched(tmp_path) as watch:
        node = offered(tmp_path, rewards)["TtsnapReward"]
    assert not [seen for seen in watch.seen if MODULE in seen or "connect" in seen]
    names = next(one for one in node.define_schema().inputs if one.id == "name").options
    assert names == [*inputs.OFFERED, *rewards]
    [[made]] = node.execute(name="mine", weight=2.0, device="cpu").result
    assert made.reward(torch.rand(1, 3, 8, 8), [""]) == [0.0]
    with pytest.raises(ValueError, match="unknown name"):
        node.execute(name=rewards["mine"], weight=2.0, device="cpu")


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ({"clip": "x.py:score"}, "there is a reward 'clip' already; offer yours by another name"),
        ({"mine": "nowhere.py:score"}, "no such file: nowhere.py"),
        ({"mine": "pickscor"}, "did you mean pickscore?"),
        ({"mine": ["clip"]}, "mine must be text"),
        ({"mine": "http://me:secret@house"}, "leave out what is before the @"),
        ("[1]", "rewards.json is damaged: it must hold keys and values"),
    ],
)
def test_a_file_of_rewards_that_cannot_be_is_refused_as_comfyui_starts(rewards: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why) as error:
        offered(tmp_path, rewards)
    assert "secret" not in str(error.value)
