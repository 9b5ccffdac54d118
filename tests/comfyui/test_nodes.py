"""The pack and its nodes over a double of ComfyUI: what a stranger's workflow may give them, what
an operator offers beyond, and whether the example workflows fit."""

from __future__ import annotations

import asyncio
import json
import re
import runpy
import shutil
import sys
import threading
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

import ttsnap
from tests.comfyui import double, double_nodes, hostile
from tests.comfyui.examples import FOLDERS
from tests.watch import MODULE, planted, watched
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.comfyui import inputs
from ttsnap.loop.budget import Budget
from ttsnap.results.sheet import Page

BEST = "best-of-n"
PACK = Path(ttsnap.__file__).parents[1] / "comfyui"
EXAMPLES = sorted((PACK / "example_workflows").glob("*.json"))
WRITTEN = ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")
"""Types of inputs that the page has widgets for."""


def entered(folder=PACK):
    """What ComfyUI gets of a folder that it loads."""
    return asyncio.run(runpy.run_path(str(folder / "__init__.py"))["comfy_entrypoint"]())


@pytest.fixture(autouse=True)
def comfyui():
    with double_nodes.nodes_of_comfyui() as management:
        yield management


def offered(folder, rewards=None):
    """The nodes of a copy of the pack, by id, beside which the operator named rewards."""
    shutil.copy(PACK / "__init__.py", folder)
    if rewards is not None:
        (folder / "rewards.json").write_text(
            rewards if isinstance(rewards, str) else json.dumps(rewards)
        )
    return {
        node.define_schema().node_id: node for node in asyncio.run(entered(folder).get_node_list())
    }


def linked(nodes):
    """What links carry, by type."""
    reward = nodes["TtsnapReward"].execute(name="brightness", weight=1.0, device="cpu").result[0]
    budget = (
        nodes["TtsnapBudget"].execute(images=1.0, evaluations=0, decodes=0, seconds=0.0).result[0]
    )
    found = {**double_nodes.objects(), "TTSNAP_REWARD": reward, "TTSNAP_BUDGET": budget}
    drafter = (
        nodes["TtsnapDrafter"]
        .execute(model=found["MODEL"], cfg=1.0, calls=1, first_time=1.0)
        .result[0]
    )
    return {**found, "TTSNAP_DRAFTER": drafter}


KEYS = [
    f"Ttsnap{name}"
    for name in (
        *("SearchSampler", "Reward", "RewardbyNode", "Checklist", "Budget", "Drafter"),
        "PickBest",
    )
]


@pytest.mark.parametrize("key", KEYS)
def test_no_link_imports_opens_or_asks_anything(key, tmp_path, monkeypatch):
    outside, nodes = tmp_path / "outside", offered(tmp_path)
    named = planted(outside, monkeypatch)
    assert list(nodes) == KEYS
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    good = hostile.given_to(nodes[key], linked(nodes))
    hostile.use(nodes[key].execute(**good).result)  # and what is imported late is there
    with watched(tmp_path / "inside") as watch:
        wrong = hostile.attack(nodes[key], good, hostile.carried(named, outside), watch)
    assert not wrong, "\n".join(wrong)
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    ("key", "given", "why"),
    [
        ("TtsnapReward", {"name": "pickscor"}, "pickscore"),
        ("TtsnapReward", {"name": "judge:yes"}, "judge:yes"),
        ("TtsnapReward", {"weight": float("nan")}, "weight.*nan"),
        ("TtsnapReward", {"more": [["brightness", 1.0]]}, "more.*brightness"),
        ("TtsnapBudget", {"evaluations": 10**12}, "evaluations.*1000000000, got"),
        ("TtsnapSearchSampler", {"steps": 20.5}, "steps.*20.5"),
        ("TtsnapSearchSampler", {"sampler_name": "dpm_adaptive"}, "sampler_name.*dpm_adaptive"),
        ("TtsnapSearchSampler", {"drafter": max}, "drafter.*another node"),
        ("TtsnapSearchSampler", {"prompt": "x" * 200_000}, "prompt.*100000"),
        ("TtsnapRewardbyNode", {"also": "a/path"}, "also.*no text"),
        ("TtsnapDrafter", {"finish": 0.0, "finish_steps": 3}, "finish_steps 3.*finish"),
        ("TtsnapPickBest", {"keep": []}, r"keep.*\[\]"),
        ("TtsnapPickBest", {"latent": {"samples": torch.zeros(3, 2, 4, 4)}}, "3 latents of 2"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(key, given, why, tmp_path):
    nodes = offered(tmp_path)
    with pytest.raises(ValueError, match=why):
        nodes[key].execute(**{**hostile.given_to(nodes[key], linked(nodes)), **given})


def test_the_best_images_come_with_their_latents(tmp_path):
    nodes = offered(tmp_path)
    images, latent = (
        torch.tensor([0.2, 0.9, 0.4]).view(3, 1, 1, 1).expand(3, 8, 8, 3),
        {"samples": torch.arange(3.0)},
    )
    links = linked(nodes)
    dark = {"name": "brightness", "weight": -3.0, "device": "cpu", "more": links["TTSNAP_REWARD"]}
    for reward, best in (
        (links["TTSNAP_REWARD"], [1, 2]),
        (nodes["TtsnapReward"].execute(**dark).result[0], [0, 2]),
    ):
        given = {
            **hostile.given_to(nodes["TtsnapPickBest"], links),
            "images": images,
            "keep": 2,
            "reward": reward,
        }
        found, kept, scores, report = (
            nodes["TtsnapPickBest"].execute(**given | {"latent": latent}).result
        )
        assert (found["samples"].tolist(), kept[:, 0, 0, 0].tolist()) == (
            best,
            images[best, 0, 0, 0].tolist(),
        )
        assert scores == sorted(scores, reverse=True)
        assert len(report.splitlines()) == 3
    assert nodes["TtsnapPickBest"].execute(**given | {"latent": None}).result[0] is None


def test_a_mask_goes_on_with_the_latents_and_a_row_of_a_batch_does_not(tmp_path):
    nodes = offered(tmp_path)
    links, reports = linked(nodes) | {"TTSNAP_BUDGET": Budget(images=8)}, list[bool]()
    for index in ({}, {"batch_index": [3]}):
        latent = {**links["LATENT"], "noise_mask": torch.ones(1, 1, 4, 4), **index}
        given = hostile.given_to(nodes["TtsnapSearchSampler"], links) | {
            "latent_image": latent,
            "keep": 2,
        }
        found, images, seeds, scores, report = nodes["TtsnapSearchSampler"].execute(**given).result
        assert found.keys() == {"samples", "noise_mask"}
        assert len(found["samples"]) == len(images) == len(seeds) == 2
        assert scores == sorted(scores, reverse=True)
        reports.append(f"KSampler with seed {seeds[0]} " in report)
    assert reports == [True, False]


def test_videos_with_sound_go_in_and_come_out_nested(tmp_path):
    nodes = offered(tmp_path)
    links, latent = (
        linked(nodes),
        double.NestedTensor([torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 3, 5)]),
    )
    given = hostile.given_to(nodes["TtsnapSearchSampler"], links) | {
        "keep": 2,
        "latent_image": {"samples": latent},
    }
    found, images, *_ = (
        nodes["TtsnapSearchSampler"].execute(**given | {"budget": Budget(images=8)}).result
    )
    video, sound = found["samples"].unbind()
    assert (video.shape, sound.shape, images.shape) == ((2, 2, 3, 4, 4), (2, 3, 5), (6, 4, 4, 3))
    given = hostile.given_to(nodes["TtsnapPickBest"], links) | {
        "images": torch.rand(2, 8, 8, 3),
        "keep": 1,
    }
    assert nodes["TtsnapPickBest"].execute(**given | {"latent": found}).result[0][
        "samples"
    ].shape == (1, 2, 3, 4, 4)


CANCELS = pytest.mark.parametrize(("returns", "times"), [(False, 1), (True, 1), (True, 2)])


def cancelled(node, links, on_call, returns, times):
    """Cancels a search at a call of the model. The second time ends also what would return."""
    from comfy import model_management

    calls, threads = list[int](), threading.active_count()

    def cancel():
        calls.append(1)
        if len(calls) in (3, 4)[:times]:
            model_management.interrupt_current_processing()

    on_call(cancel)
    given = hostile.given_to(node, links) | {
        "algorithm": "best-of-n",
        "batch_size": 4,
        "keep": 2,
        "steps": 8,
    }
    given["on_cancel"] = "return the best so far" if returns else "stop"
    with torch.inference_mode():
        if returns and times == 1:
            latent, images, seeds, _, report = node.execute(**given).result
            assert len(latent["samples"]) == len(images) == len(seeds) == 1
            assert "stopped early" in report
        else:
            with pytest.raises(model_management.InterruptProcessingException):
                node.execute(**given)
            assert len(calls) <= 6
    assert threading.active_count() == threads
    assert not model_management.processing_interrupted()


@CANCELS
def test_cancelling_leaves_no_thread_and_no_flag(returns, times, tmp_path, comfyui):
    nodes, comfyui.bars_hear = offered(tmp_path), times > 1  # a search asks by itself, too
    links = linked(nodes) | {"TTSNAP_BUDGET": Budget(images=8), "TTSNAP_DRAFTER": None}

    def on_call(cancel):
        links["MODEL"].model.on_call = cancel

    cancelled(nodes["TtsnapSearchSampler"], links, on_call, returns, times)


def test_every_candidate_is_seen_and_the_budget_is_the_measure(tmp_path, comfyui):
    nodes = offered(tmp_path)
    links = linked(nodes) | {"TTSNAP_BUDGET": Budget(images=8), "TTSNAP_DRAFTER": None}
    given = hostile.given_to(nodes["TtsnapSearchSampler"], links)
    with torch.inference_mode():
        nodes["TtsnapSearchSampler"].execute(**given | {"steps": 8})
    done, whole, pictures = zip(*comfyui.updates, strict=True)
    assert set(whole) == {64}
    assert list(done) == sorted(done)
    assert len({*done}) > 8  # as it goes on, not as it is planned
    assert done[-1] > 50
    sizes = [max(shown[1].size) for shown in pictures if shown]
    assert sizes
    assert max(sizes) <= 768


def test_a_checklist_is_answered_item_by_item_in_report_and_preview(tmp_path, comfyui, monkeypatch):
    nodes, marks = offered(tmp_path), list[bool]()
    monkeypatch.setattr(Page, "mark", lambda self, at, met: marks.append(met))
    links = linked(nodes) | {"TTSNAP_BUDGET": Budget(images=2), "TTSNAP_DRAFTER": None}
    ask = nodes["TtsnapChecklist"].execute
    (bright,) = links["TTSNAP_REWARD"]
    items = "two dogs\n\n the left dog is red "
    links["TTSNAP_REWARD"] = ask(items=items, by=(bright,)).result[0]
    given = hostile.given_to(nodes["TtsnapSearchSampler"], links) | {"steps": 4, "algorithm": BEST}
    with torch.inference_mode():
        *_, report = nodes["TtsnapSearchSampler"].execute(**given).result
        weighed = ask(items="", by=(bright,), more=(bright._replace(weight=0.5),)).result[0]
        with pytest.raises(ValueError, match="not weighed"):
            nodes["TtsnapSearchSampler"].execute(**{**given, "reward": weighed})
    for words in ("two dogs", "the left dog is red"):
        assert re.search(rf"^{words} .* of 2 images$", report, re.MULTILINE), report
    assert marks
    with pytest.raises(ValueError, match="one reward answers"):
        ask(items="a", by=(bright, bright))


def test_an_operator_offers_rewards_of_their_own_by_name(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    planted(outside, monkeypatch)
    rewards = {
        "mine": f"{outside}/{MODULE}.py:score",
        "house": "http://127.0.0.1:9",
        "taste": "judge:rubric:model=m",
    }
    with watched(tmp_path / "inside") as watch:
        node = offered(tmp_path, rewards)["TtsnapReward"]
    # its text is read, to see what it defines
    ran = [seen for seen in watch.seen if not seen.startswith("opened")]
    assert not [seen for seen in ran if MODULE in seen or "connect" in seen]
    names = next(one for one in node.define_schema().inputs if one.id == "name").options
    assert names == [*inputs.REWARD_NAMES, *rewards]
    [[made]] = node.execute(name="mine", weight=2.0, device="cpu").result
    assert made.reward(torch.rand(1, 3, 8, 8), [""]) == [0.0]
    with pytest.raises(ValueError, match="unknown name"):
        node.execute(name=rewards["mine"], weight=2.0, device="cpu")


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ({"clip": "x.py:score"}, "'clip' already"),
        ({"mine": "nowhere.py:score"}, "nowhere.py"),
        ({"mine": "pickscor"}, "pickscore"),
        ({"mine": ["clip"]}, "mine must be a valid string"),
        ({"mine": "http://me:secret@house"}, "before the @"),
        ("[1]", "rewards.json"),
    ],
)
def test_a_file_of_rewards_that_cannot_be_is_refused_as_comfyui_starts(rewards, why, tmp_path):
    with pytest.raises(ValueError, match=why) as error:
        offered(tmp_path, rewards)
    assert "secret" not in str(error.value)


def test_without_ttsnap_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ttsnap.comfyui.nodes", None)
    with pytest.raises(ImportError, match=r"README\.md"):
        entered()


def test_what_else_is_missing_is_told_as_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy", None)
    monkeypatch.delitem(sys.modules, "ttsnap.comfyui.nodes", raising=False)
    with pytest.raises(ModuleNotFoundError, match="comfy"):
        entered()


def test_it_keeps_the_registrys_conventions():
    told = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    project = told["project"]
    assert "comfyui" not in project["name"].lower()
    assert (project["license"], project["dependencies"]) == ({"text": "Apache-2.0"}, ["ttsnap"])
    assert all(part.isdecimal() for part in project["version"].split("."))
    assert ttsnap.__version__.startswith(project["version"])
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= told["tool"]["comfy"].keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_the_nodes_that_there_are(path, tmp_path):
    """Each value stands at the place of its input: one more input of a node, and all workflows must
    be saved anew."""
    schemas = {key: node.define_schema().inputs for key, node in offered(tmp_path).items()}
    read = json.loads(path.read_text())
    by_id, by_type = ({node[key]: node for node in read["nodes"]} for key in ("id", "type"))
    assert {"TtsnapSearchSampler", "TtsnapReward", "TtsnapBudget"} <= by_type.keys()
    for node in read["nodes"]:
        # 7: optional
        needed = [one for one in node["inputs"] if "widget" not in one and one.get("shape") != 7]
        assert all(one["link"] for one in needed), node["type"]
        if node["type"].startswith("Ttsnap"):
            named = node["widgets_values_named"]
            assert node["widgets_values"] == [*named.values()]
            assert [name for name in named if name != "control_after_generate"] == [
                one.id for one in schemas[node["type"]] if str(one.io_type) in WRITTEN
            ]
        if "Loader" in node["type"]:  # what the page offers to download, where it is missing
            (weights,) = node["properties"]["models"]
            assert weights["name"] == node["widgets_values"][0] == Path(weights["url"]).name
            assert weights["directory"] == FOLDERS[node["type"]]
    for link, source, slot, target, place, kind in read["links"]:
        assert link in by_id[source]["outputs"][slot]["links"]
        assert by_id[target]["inputs"][place]["link"] == link
        assert kind in (by_id[source]["outputs"][slot]["type"], "*")
    values = by_type["TtsnapSearchSampler"]["widgets_values"]
    assert {"fixed", "seed-pruning"} <= {*values}
    assert by_type["TtsnapReward"]["widgets_values"][0] in inputs.REWARD_NAMES
    for options in (value for value in values if str(value).startswith("{")):
        SeedPruning(**json.loads(options))
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 150_000
    assert Image.open(picture).width >= 1000
