"""The nodes in graphs that a whole ComfyUI runs."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.browser import chromium
from tests.comfyui import hostile
from tests.comfyui.double_nodes import Scorer
from tests.comfyui.page import opened
from tests.comfyui.real import LATENT
from tests.comfyui.server import ComfyServer, Graph, Heard, Output
from tests.watch import MODULE, planted, watched
from ttsnap.comfyui.inputs import Weighted
from ttsnap.reward_models.registry import make_reward

pytestmark = pytest.mark.usefixtures("comfy")
RETURN = "return the best so far"
PROMPT = "a red circle left of a blue square"


class Workflow(Graph):
    """A graph with the embedded model, the prompt's conditioning, and the nodes of ttsnap."""

    def __init__(self, parametrisation: str = "flow") -> None:
        super().__init__()
        self.model, self.clip, self.vae = self.add("ToyCheckpoint", 3, parametrisation=parametrisation)
        texts = [self.add("CLIPTextEncode", clip=self.clip, text=text) for text in (PROMPT, "")]
        latent = self.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
        self.how: dict[str, Any] = dict(zip(("positive", "negative"), texts, strict=True))
        self.how |= {"model": self.model, "latent_image": latent, "steps": 8, "cfg": 4.0, "denoise": 1.0}
        self.how |= {"sampler_name": "euler", "scheduler": "simple"}

    def reward(self, name: str, **given: Any) -> Output:
        made: Output = self.add("TtsnapReward", name=name, **{"weight": 1.0, "device": "cpu", **given})
        return made

    def search(self, **given: Any) -> list[Output]:
        """latent, images, seeds, scores, report."""
        how = {"prompt": PROMPT, "algorithm": "seed-pruning", "keep": 1, "seed": 5, "vae": self.vae, **self.how}
        reward = {} if "reward" in given else {"reward": self.reward("scenes")}
        made: list[Output] = self.add("TtsnapSearchSampler", 5, **{**how, **reward, **given})
        return made

    def stock(self, seed: int, **given: Any) -> Output:
        """The images of KSampler."""
        latent = self.add("KSampler", **{**self.how, "seed": seed, **given})
        made: Output = self.add("VAEDecode", samples=latent, vae=self.vae)
        return made

    def save(self, images: Output) -> Output:
        made: Output = self.add("SaveImage", images=images, filename_prefix="nodes")
        return made

    def read(self, value: Output) -> Output:
        made: Output = self.add("PreviewAny", source=value)
        return made


def apart(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two images of one size, in steps of 1/255."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_the_winner_is_ksamplers_image_at_the_seed_that_is_reported(server: ComfyServer) -> None:
    graph = Workflow()
    _, images, seeds, scores, report = graph.search(keep=2)
    saved, seeds_read, scores_read, report_read = graph.save(images), *map(graph.read, (seeds, scores, report))
    outputs = server.run(graph)
    found = server.images(outputs, saved)
    again = Workflow()
    stock = [again.save(again.stock(int(seed))) for seed in outputs[seeds_read[0]]["text"]]
    made = server.run(again)
    assert [apart(one, *server.images(made, node)) for one, node in zip(found, stock, strict=True)] <= [1, 1]
    values = [float(score) for score in outputs[scores_read[0]]["text"]]
    assert len(values) == 2
    assert values == sorted(values, reverse=True)
    [text] = outputs[report_read[0]]["text"]
    assert f"KSampler with seed {outputs[seeds_read[0]]['text'][0]} " in text


def test_ranks_and_scores_agree(server: ComfyServer) -> None:
    graph = Workflow()
    both = graph.reward("brightness", weight=0.5, more=graph.reward("scenes"))
    latent, images, _, scores, _ = graph.search(keep=3, reward=both, algorithm="best-of-n", options='{"n": 4}')
    worst = graph.reward("brightness", weight=-0.5, more=graph.reward("scenes", weight=-1.0))
    picked, kept, again, _ = graph.add("TtsnapPickBest", 4, images=images, latent=latent, reward=both, prompt=PROMPT,
                                       keep=3)  # fmt: skip
    third, last, *_ = graph.add("TtsnapPickBest", 4, images=kept, latent=picked, reward=worst, prompt=PROMPT, keep=1)
    decoded = graph.add("VAEDecode", samples=third, vae=graph.vae)
    texts = [graph.read(value) for value in (scores, again)]
    pictures = [graph.save(value) for value in (images, kept, last, decoded)]
    outputs = server.run(graph)
    told, found = ([float(text) for text in outputs[node[0]]["text"]] for node in texts)
    assert found == pytest.approx(told, abs=1e-5)
    whole, same, [worst_image], [worst_decoded] = (server.images(outputs, node) for node in pictures)
    assert len(whole) == 3
    assert [apart(one, other) for one, other in zip(whole, same, strict=True)] == [0, 0, 0]
    assert apart(worst_image, whole[2]) == 0
    assert apart(worst_decoded, whole[2]) <= 1


def test_stock_nodes_make_a_finished_draft_again(server: ComfyServer) -> None:
    graph = Workflow()
    how = {"cfg": 2.0, "calls": 1, "first_time": 1.0, "finish": 0.4, "finish_steps": 3}
    drafter = graph.add("TtsnapDrafter", model=graph.model, **how)
    _, images, seeds, _, report = graph.search(drafter=drafter)
    saved, seed_read, report_read = graph.save(images), graph.read(seeds), graph.read(report)
    outputs = server.run(graph)
    [seed], [text] = (outputs[node[0]]["text"] for node in (seed_read, report_read))
    told = re.search(r"noise_seed (\d+), (\d+) steps, start_at_step (\d+) ", text)
    assert told is not None, text
    assert told[1] == seed
    again = Workflow()
    draft = again.add("KSampler", **again.how | {"seed": int(seed), "steps": 1, "cfg": 2.0})
    how = {**again.how, "latent_image": draft}
    del how["denoise"]
    how |= {"noise_seed": int(seed), "steps": int(told[2]), "start_at_step": int(told[3]), "end_at_step": 10000}
    latent = again.add("KSamplerAdvanced", **how, add_noise="enable", return_with_leftover_noise="disable")
    made = again.save(again.add("VAEDecode", samples=latent, vae=again.vae))
    assert apart(*server.images(outputs, saved), *server.images(server.run(again), made)) <= 1


def test_particles_and_another_nodes_reward(server: ComfyServer) -> None:
    graph = Workflow("eps")
    by_node = graph.add("TtsnapRewardbyNode", node="Toy Redness", weight=1.0)
    how = {"algorithm": "smc", "sampler_name": "ttsnap: sde", "previews": "previewer", "batch_size": 3}
    report = graph.read(graph.search(reward=by_node, **how)[4])
    [text] = server.run(graph)[report[0]]["text"]
    assert "(Toy Redness 0." in text
    assert "KSampler" not in text


def test_a_part_is_painted_anew_and_its_mask_goes_on(server: ComfyServer) -> None:
    graph = Workflow()
    picture = graph.stock(1)
    empty = graph.add("SolidMask", value=0.0, width=32, height=32)
    right = graph.add("SolidMask", value=1.0, width=16, height=32)
    mask = graph.add("MaskComposite", destination=empty, source=right, x=16, y=0, operation="add")
    pixels = graph.add("VAEEncode", pixels=picture, vae=graph.vae)
    latent = graph.add("SetLatentNoiseMask", samples=pixels, mask=mask)
    how = {"latent_image": latent, "denoise": 0.8, "sampler_name": "dpmpp_2m_sde"}
    found, images, *_ = graph.search(**how)
    before, made = graph.save(picture), graph.save(images)
    saved = graph.add("SaveLatent", samples=found, filename_prefix="painted")
    outputs = server.run(graph)
    a, b = (np.asarray(server.images(outputs, node)[0], int) for node in (before, made))
    assert np.abs(a - b)[:, 18:].max() > 60
    assert np.abs(a - b)[:, :12].mean() < 4  # what the VAE loses
    assert server.files(outputs, saved)


def test_a_strangers_graph_runs_no_code(server: ComfyServer, tmp_path: Path) -> None:
    """ComfyUI v0.3.64 hands a node what a graph says, whether its list has it or not."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef score(*_): return [0.0]\n")
    graph = Workflow()
    graph.save(graph.search(reward=graph.reward(f"{tmp_path}/evil.py:score"))[1])
    with pytest.raises(RuntimeError, match="unknown name"):
        server.run(graph)
    assert not (tmp_path / "ran").exists()


def test_no_link_imports_opens_or_asks_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests/comfyui/test_nodes.py, on ComfyUI's own objects."""
    import nodes as comfy_nodes

    from tests.comfyui.toy_nodes.embedded import conditioning, embedded_model, embedded_vae
    from ttsnap.comfyui.nodes import nodes_of

    named = planted(tmp_path / "outside", monkeypatch)
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "Scorer", Scorer)
    offered = {node.define_schema().node_id: node for node in nodes_of(tmp_path / "none.json")}
    made = {"MODEL": embedded_model(), "CONDITIONING": conditioning(PROMPT), "VAE": embedded_vae(), "*": object(),
            "LATENT": {"samples": torch.zeros(LATENT)}, "IMAGE": torch.rand(2, 32, 32, 3)}  # fmt: skip
    wrong = []
    with torch.inference_mode():
        for key in ("TtsnapReward", "TtsnapBudget", "TtsnapDrafter", *offered):
            good = hostile.given_to(offered[key], made)
            results = offered[key].execute(**good).result  # and what is imported late is there
            outputs = zip(offered[key].define_schema().outputs, results, strict=True)
            made |= {one.io_type: result for one, result in outputs if one.io_type.startswith("TTSNAP")}
            with watched(tmp_path / "inside") as watch:
                wrong += hostile.attack(offered[key], good, hostile.carried(named, tmp_path / "outside"), watch)
    assert not wrong, "\n".join(wrong)
    assert MODULE not in sys.modules


@pytest.mark.parametrize("on_cancel", ["stop", RETURN])
def test_cancelling(server: ComfyServer, on_cancel: str) -> None:
    graph = Workflow()
    budget = graph.add("TtsnapBudget", images=300.0, evaluations=0, decodes=0, seconds=0.0)
    how = {"algorithm": "best-of-n", "budget": budget, "on_cancel": on_cancel, "batch_size": 4, "steps": 20}
    latent, images, *_, report = graph.search(**how)
    saved, read = graph.save(images), graph.read(report)
    with server.listening() as heard:
        cancel = threading.Timer(0.0, _cancel, (server, heard, latent))
        cancel.start()
        if on_cancel == "stop":
            with pytest.raises(RuntimeError, match="execution_interrupted"):
                server.run(graph)
        else:
            outputs = server.run(graph)
            [text] = outputs[read[0]]["text"]
            assert "stopped early" in text
            assert len(server.images(outputs, saved)) == 1
        cancel.join()
    assert 100 < heard.progress(latent)[-1][0] < 3000
    after = Workflow()
    shown = after.save(after.stock(4, steps=3))
    assert server.images(server.run(after), shown)  # the server goes on


def _cancel(server: ComfyServer, heard: Heard, node: Output) -> None:
    """As the page's button, in the middle of a search."""
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(value > 100 for value, _ in heard.progress(node)):
        time.sleep(0.02)
    server.client.post("/interrupt", json={})


@pytest.mark.parametrize(("on_cancel", "times"), [("stop", 1), (RETURN, 1), (RETURN, 2)])
def test_cancelling_leaves_no_thread_and_no_flag(on_cancel: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, by the hook of ComfyUI's server. The second time ends also what would return."""
    import comfy.utils
    from comfy import model_management

    from tests.comfyui.toy_nodes.embedded import conditioning, embedded_model, embedded_vae
    from ttsnap.comfyui.nodes import search_sampler

    def hook(*_: object, **__: object) -> None:
        model_management.throw_exception_if_processing_interrupted()

    rows: list[int] = []

    def cancelling(apply: Any, args: dict[str, Any]) -> Any:
        rows.append(len(args["input"]))
        if len(rows) in (3, 4)[:times]:
            model_management.interrupt_current_processing()
        return apply(args["input"], args["timestep"], **args["c"])

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    model, threads = embedded_model(), threading.active_count()
    model.set_model_unet_function_wrapper(cancelling)
    given = {"model": model, "positive": conditioning(PROMPT), "negative": conditioning(""), "vae": embedded_vae(),
             "latent_image": {"samples": torch.zeros(LATENT)}, "reward": (Weighted(make_reward("brightness"), 1.0),),
             "prompt": PROMPT, "seed": 0, "steps": 8, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "simple",
             "denoise": 1.0, "algorithm": "best-of-n", "keep": 2, "on_cancel": on_cancel, "batch_size": 4}  # fmt: skip
    with torch.inference_mode():
        if on_cancel == RETURN and times == 1:
            latent, images, seeds, _, report = search_sampler.execute(**given).result
            assert len(latent["samples"]) == len(images) == len(seeds) == 1
            assert "stopped early" in report
        else:
            with pytest.raises(model_management.InterruptProcessingException):
                search_sampler.execute(**given)
            assert len(rows) <= 6
    assert threading.active_count() == threads
    assert not model_management.processing_interrupted()


def test_every_candidate_is_seen_and_the_budget_is_the_measure(server: ComfyServer) -> None:
    graph = Workflow()
    latent, *_, report = graph.search(seed=123)
    graph.read(report)
    with server.listening() as heard:
        server.run(graph)
    assert {whole for _, whole in heard.progress(latent)} == {64}
    assert [value for value, _ in heard.progress(latent)] == sorted(value for value, _ in heard.progress(latent))
    assert heard.progress(latent)[-1][0] > 50
    assert heard.previews
    assert all(max(preview.size) <= 768 for preview in heard.previews)


@pytest.mark.browser
def test_a_saved_pictures_workflow_makes_it_again(server: ComfyServer, tmp_path: Path) -> None:
    graph = Workflow()
    saved = graph.save(graph.search(seed=77)[1])
    with chromium() as browser, opened(server, browser) as page:
        page.load(graph)
        workflow = page.workflow()
    [first] = server.images(server.run(graph, workflow), saved)
    kept = json.loads(first.info["workflow"])
    server.client.post("/free", json={"unload_models": True, "free_memory": True})  # nothing is left in its cache
    with chromium() as browser, opened(server, browser) as page:
        page.load(kept)
        again = Graph(page.prompt())
        page.save(tmp_path / "page.png")
        assert not page.troubles()
    [second] = server.images(server.run(again), saved)
    assert apart(first, second) == 0
