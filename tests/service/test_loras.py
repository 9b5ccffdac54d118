"""LoRAs that requests choose by name: what they give, what is refused, and what becomes of their
weights."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from tests.cluster.local import LocalPool
from tests.pipelines.tiny import FAMILIES, save_lora
from tests.service.asking import EDITED, PROMPT, SMALL, apart, best, refusal, shown
from tests.service.conftest import EDITS, REWARDS, few_steps, one_device, serve
from tests.shallow import shallow
from ttsnap.cli import main
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.lora import load_lora
from ttsnap.service.engines import MOST_TWINS, ManyDevices, loras_in
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.requests import Generation, prepared_of, validated
from ttsnap.service.server import offer_of

HALF = {"name": "sketch", "scale": 0.5}


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """Two LoRAs of the embedded model, and one of another family."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("sketch", "ink.v2")):
        save_lora(pipe, folder / name, seed=seed, text_encoder=name == "ink.v2")
    save_lora(FAMILIES["sd15"].build(), folder / "stranger")
    return folder


def put(made, folder, name, other=None):
    """A file at once, as operators should replace one."""
    shutil.copy(made / (other or name) / "pytorch_lora_weights.safetensors", folder / "new")
    os.replace(folder / "new", folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    shutil.copytree(made / "ink.v2", folder / "ink.v2")
    put(made, folder, "sketch")
    return folder


@pytest.fixture(scope="module")
def offer(offer, folder):
    return replace(offer, loras={lora.name: lora for lora in loras_in(folder)})


@pytest.fixture(scope="module")
def served(pipe, folder):
    return one_device(pipe, *REWARDS, loras=loras_in(folder))


def under(caller, *lora, **own):
    """The reply to a request under a LoRA, or without."""
    return caller.made(
        reward="brightness", **({"lora": lora[0]} if lora and lora[0] else {}), **own
    )


def refused(caller, lora):
    return refusal(caller.send(**{**SMALL, "lora": lora}))


@pytest.fixture(scope="module")
def unserved(pipe):
    """A copy made before the pipeline is in use by another thread."""
    return copy.deepcopy(pipe)


@pytest.fixture(scope="module")
def caller(served, offer, unserved):
    with serve(served, replace(offer, draft="embedded")) as caller:
        yield caller


@pytest.mark.parametrize(("name", "scale"), [("sketch", 0.5), ("ink.v2", 1.0)])
def test_an_image_is_what_the_pipeline_gives_under_the_lora(caller, unserved, folder, name, scale):
    own = copy.deepcopy(unserved)
    load_lora(own, f"{folder / name}{'' if name == 'ink.v2' else '.safetensors'}:{scale}")
    call = {
        ("num_inference_steps" if name == "steps" else name): value for name, value in SMALL.items()
    }
    out = own(PROMPT, draft=None, reward="brightness", **call)
    reply = under(caller, {"name": name, "scale": scale})
    assert apart(shown(reply), out.images[0]) <= 1, "rounding may differ with the batch"
    assert best(reply)[0] == out.search[0].best.seed
    assert reply["warnings"] == []
    told = shown(reply).info["ttsnap"]
    assert json.loads(told)["lora"] == (f"{name}:{scale}" if scale != 1 else name)
    assert str(folder) not in told
    assert apart(shown(under(caller)), out.images[0]) > 8


def test_an_image_under_several_is_made_again_from_its_png(caller, folder, tmp_path):
    reply = under(caller, [HALF, "ink.v2"])
    (tmp_path / "a.png").write_bytes(base64.b64decode(reply["data"][0]["b64_json"]))
    loras = [f"--lora={folder / 'ink.v2'}", f"--lora={folder / 'sketch.safetensors'}:0.5"]
    with shallow():
        assert main(["replay", str(tmp_path / "a.png"), *loras]) == 0
    assert apart(Image.open(tmp_path / "replays" / "a.png"), shown(reply)) <= 1


def test_requests_of_one_batch_have_each_its_own_and_nothing_leaks(caller, pipe):
    weights = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    flags = [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    wanted = [
        0,
        "sketch",
        {"name": "sketch", "scale": -0.5},
        "ink.v2",
        ["ink.v2", {"name": "sketch", "scale": 0.25}],
        {"name": "sketch", "scale": 0},
    ]
    alone = [under(caller, lora) for lora in wanted]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(partial(under, caller), wanted * 2))
    for one, other in zip(alone * 2, together, strict=True):
        assert apart(shown(one), shown(other)) <= 1
        assert best(one)[0] == best(other)[0]
    different = [shown(reply).tobytes() for reply in alone]
    assert len(set(different)) == len(wanted) - 1
    assert different[0] == different[-1], "a scale of 0 is none"
    now = pipe.transformer.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in weights.items())
    assert flags == [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    assert not any(pipe.get_list_adapters().values())


@pytest.mark.parametrize(
    "lora",
    [
        "sketh",
        "../loras/sketch",
        "/etc/passwd",
        {"path": "/etc/passwd"},
        {"name": "sketch", "scale": 1000000000.0},
        {"name": "sketch", "scale": "strong"},
        {"name": "sketch", "weight": 1},
        ["sketch", {"name": "sketch", "scale": 2}],
        ["sketch"] * 5,
        [["sketch"]],
        7,
    ],
)
def test_what_is_not_offered_or_does_not_fit_is_refused_before_compute(caller, folder, lora):
    before = caller.metric("nfe_total")
    for _ in range(2):
        reply = caller.send(lora=lora)
        assert refusal(reply)[:2] == (400, "lora")
        assert str(folder) not in reply.text
    assert caller.metric("nfe_total") == before


def test_what_is_no_file_of_a_lora_is_not_offered(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = (folder / "sketch.safetensors").read_bytes()
    (tmp_path / "inside").mkdir()
    for name in ("checkpoint.bin", ".hidden.safetensors"):
        (tmp_path / name).write_bytes(whole)
    for name in ("pipe", "inside/pipe"):
        os.mkfifo(tmp_path / f"{name}.safetensors")
    for name, target in (("loop", "loop"), ("gone", "nothing")):
        (tmp_path / f"{name}.safetensors").symlink_to(tmp_path / f"{target}.safetensors")
    assert [lora.name for lora in loras_in(tmp_path)] == ["ink.v2", "sketch"]


def test_callers_see_what_is_offered(caller):
    (first,) = caller.get("/v1/models").json()["data"]
    assert first == caller.get("/v1/models/embedded").json()
    assert first["loras"] == ["ink.v2", "sketch"]


@pytest.mark.parametrize("name", ["stranger", "cut"])
def test_a_file_that_does_not_fit_the_model_is_refused_at_the_start(pipe, made, tmp_path, name):
    put(made, tmp_path, "stranger")
    if name == "cut":
        whole = (tmp_path / "stranger.safetensors").read_bytes()
        (tmp_path / "stranger.safetensors").unlink()
        (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"the LoRA {name}"):
        one_device(pipe, loras=loras_in(tmp_path))


def test_more_choices_than_twins_are_kept(caller):
    """Each is made anew, and gives the same."""
    first = under(caller, HALF)["data"]
    for i in range(MOST_TWINS + 1):
        under(caller, {"name": "ink.v2", "scale": 0.5 + i / 100})
    assert under(caller, HALF)["data"] == first


def test_a_job_makes_under_a_lora_what_a_request_makes(caller, served, offer, keeping):
    with keeping(served, offer=offer) as mine:
        for lora in ("ink.v2", HALF):
            told = mine.ended(mine.begun(lora=lora, reward="brightness"))
            assert told["data"] == under(caller, lora)["data"]


def test_edits_and_forms_take_them(editor, drawn, folder):
    own, fields = (
        copy.deepcopy(editor),
        {"prompt": PROMPT, **SMALL, "budget": "9nfe", "strength": "0.75"},
    )
    loras = loras_in(folder)
    offered = replace(EDITS, loras={lora.name: lora for lora in loras})
    limits = ServiceLimits(drain=0.1, side=64)
    with serve(one_device(copy.deepcopy(editor), loras=loras), offered, limits) as mine:
        edited = [
            mine.ask(
                "POST", EDITED, data={**fields, **lora}, files={"image": ("a.png", drawn[0])}
            ).json()
            for lora in (
                {"lora[name]": "sketch", "lora[scale]": "0.5"},
                {"lora[]": ["sketch"]},
                {},
            )
        ]
    load_lora(own, f"{folder / 'sketch.safetensors'}:0.5")
    call = {
        **few_steps("embedded").call,
        "strength": 0.75,
        "image": Image.open(io.BytesIO(drawn[0])),
    }
    out = own(prompt=PROMPT, search="best-of-n", reward="brightness", budget="9nfe", seed=3, **call)
    assert [apart(shown(each), out.images[0]) <= 1 for each in edited] == [True, False, False]


def test_the_models_own_draft_is_taken_under_a_lora_where_it_is_asked_for(caller, served):
    offered = offer_of("embedded", served, None, {}, "auto")

    def draft(**own):
        return prepared_of(
            validated(Generation, {"prompt": PROMPT, "reward": "scenes", **own}),
            offered,
            ServiceLimits(),
        ).engine.sampler.draft

    assert [draft(), draft(lora={"name": "sketch", "scale": 0})] == ["embedded"] * 2
    assert [draft(lora="sketch"), draft(lora="sketch", draft=True)] == [None, "embedded"]
    for lora in (0, "sketch"):
        reply = under(caller, lora, search="seed-pruning", draft=True, budget="12nfe")
        assert reply["usage"]["draft_calls"] > 0
        assert any("drafts were not checked" in each for each in reply["warnings"])


@pytest.mark.usefixtures("shallow_model")
def test_several_devices_give_what_one_gives(caller, served, offer):
    cpu = ModelOptions(device="cpu", dtype="float32")
    many = ManyDevices(
        served, cpu, {name: name for name in REWARDS}, lambda make: LocalPool(make, 2)
    )
    with serve(many, offer) as spread:
        for lora in (0, "sketch", HALF):
            assert apart(shown(under(spread, lora)), shown(under(caller, lora))) <= 1


def test_the_folder_and_the_model_are_checked_at_the_start(folder, tmp_path):
    with pytest.raises(ValueError, match=r"--loras .*nowhere"):
        loras_in(tmp_path / "nowhere")
    assert loras_in(tmp_path) == ()
    with pytest.raises(ValueError, match="loads no LoRA"):
        one_device(FAMILIES["pixart_sigma"].build(), loras=loras_in(folder))
