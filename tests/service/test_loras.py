"""LoRAs that requests choose by name: what they give, what is refused, and what becomes of their weights."""

from __future__ import annotations

import base64
import copy
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from PIL import Image

from tests.cluster.local import LocalPool
from tests.pipelines.tiny import FAMILIES, save_lora
from tests.service.conftest import (
    EDITS,
    PROMPT,
    REWARDS,
    apart,
    client_of,
    few_steps,
    metric,
    one_device,
    png,
    serve,
    until,
)
from tests.service.conftest import picture as opened
from tests.service.test_jobs import begun, ended, serving
from tests.service.test_videos import CALL, twin
from tests.shallow import shallow
from ttsnap.cli import main
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.search import search
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.lora import load_lora, under_lora
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.engines import ManyDevices, OneDevice
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.loras import BUSY, LoadedLoras, LoraFolder
from ttsnap.service.opening import offer_of
from ttsnap.service.requests import Generation, Video, prepared_of, validated
from ttsnap.service.server import GenerationServer

OWN: dict[str, Any] = {"seed": 3, "budget": "16nfe", "search": "best-of-n", "steps": 4, "reward": "brightness"}
MIB = 2**20


@pytest.fixture(scope="module")
def made(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs of the embedded model, and one of another family."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("sketch", "ink.v2")):
        save_lora(pipe, folder / name, seed=seed, text_encoder=name == "ink.v2")
    save_lora(FAMILIES["sd15"].build(), folder / "stranger")
    return folder


def put(made: Path, folder: Path, name: str, other: str | None = None) -> None:
    """A file at once, as operators should replace one."""
    shutil.copy(made / (other or name) / "pytorch_lora_weights.safetensors", folder / "new")
    os.replace(folder / "new", folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    shutil.copytree(made / "ink.v2", folder / "ink.v2")
    for name in ("sketch", "stranger"):
        put(made, folder, name)
    return folder


@pytest.fixture(scope="module")
def served(pipe: Any) -> OneDevice:
    return one_device(pipe, *REWARDS)


@pytest.fixture(scope="module")
def server(served: OneDevice, offer: ServingCatalog, folder: Path) -> Iterator[GenerationServer]:
    with serve(served, replace(offer, loras=LoraFolder(folder), draft="embedded")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: GenerationServer) -> Iterator[OpenAI]:
    with closing(client_of(server)) as client:
        yield client


def picture(reply: Any) -> Image.Image:
    return opened(reply["data"][0]["b64_json"])


def ask(client: OpenAI, lora: object = None, **own: object) -> dict[str, Any]:
    reply: dict[str, Any] = client.images.generate(
        prompt=PROMPT, extra_body={**OWN, **({} if lora is None else {"lora": lora}), **own}
    ).to_dict()
    return reply


@pytest.mark.parametrize(("name", "scale"), [("sketch", 0.5), ("ink.v2", 1.0)])
def test_an_image_is_what_the_pipeline_gives_under_the_lora(
    client: OpenAI, pipe: Any, folder: Path, name: str, scale: float
) -> None:
    own = copy.deepcopy(pipe)
    path = folder / "ink.v2" if name == "ink.v2" else folder / "sketch.safetensors"
    load_lora(own, f"{path}:{scale}")
    call = {("num_inference_steps" if name == "steps" else name): value for name, value in OWN.items()}
    out = own(PROMPT, draft=None, **call)
    for lora in ({"name": name, "scale": scale}, {"lora_name": name, "local_path": "../x", "lora_scale": scale}):
        reply = ask(client, lora)
        assert apart(picture(reply), out.images[0]) <= 1, "rounding may differ with the batch"
        assert reply["data"][0]["seed"] == out.search[0].best.seed
        assert reply["warnings"] == ["not used here: lora.local_path"] * ("local_path" in lora)
    told = picture(reply).info["ttsnap"]
    assert json.loads(told)["lora"] == (f"{name}:{scale}" if scale != 1 else name)
    assert str(folder) not in told
    assert apart(picture(ask(client)), out.images[0]) > 8


def test_an_image_under_several_is_made_again_from_its_png(client: OpenAI, folder: Path, tmp_path: Path) -> None:
    reply = ask(client, [{"name": "sketch", "scale": 0.5}, "ink.v2"])
    (tmp_path / "a.png").write_bytes(base64.b64decode(reply["data"][0]["b64_json"]))
    loras = [f"--lora={folder / 'ink.v2'}", f"--lora={folder / 'sketch.safetensors'}:0.5"]
    with shallow():
        assert main(["replay", str(tmp_path / "a.png"), *loras]) == 0
    assert apart(Image.open(tmp_path / "replays" / "a.png"), picture(reply)) <= 1


def test_requests_of_one_batch_have_each_its_own_and_nothing_leaks(
    client: OpenAI, server: GenerationServer, pipe: Any
) -> None:
    events = [f'ttsnap_loras_total{{event="{event}"}}' for event in ("loaded", "evicted")]
    before = [metric(server, event) for event in events]
    weights = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    flags = [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    wanted: list[Any] = [
        None, "sketch", {"name": "sketch", "scale": -0.5}, "ink.v2", ["ink.v2", {"name": "sketch", "scale": 0.25}],
        {"name": "sketch", "scale": 0},
    ]  # fmt: skip
    alone = [ask(client, lora) for lora in wanted]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda lora: ask(client, lora), wanted * 2))
    for one, other in zip(alone * 2, together, strict=True):
        assert apart(picture(one), picture(other)) <= 1
        assert one["data"][0]["seed"] == other["data"][0]["seed"]
    different = [picture(reply).tobytes() for reply in alone]
    assert len(set(different)) == len(wanted) - 1
    assert different[0] == different[-1], "a scale of 0 is none"
    now = pipe.transformer.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in weights.items())
    assert flags == [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    assert not any(pipe.get_list_adapters().values())
    loaded, evicted = (metric(server, event) - one for event, one in zip(events, before, strict=True))
    assert loaded <= 3, "at most once each, and sketch besides ink"
    assert evicted == 0
    assert metric(server, "ttsnap_lora_bytes") > 0


@pytest.mark.parametrize("lora", [
    "sketh", "../loras/sketch", "/etc/passwd", {"path": "/etc/passwd"}, {"name": "sketch", "scale": 1000000000.0},
    {"name": "sketch", "scale": "strong"}, {"name": "sketch", "weight": 1}, ["sketch", {"name": "sketch", "scale": 2}],
    ["sketch"] * 5, [["sketch"]], 7, "stranger", ["sketch", "stranger"],
])  # fmt: skip
def test_what_is_not_offered_or_does_not_fit_is_refused_before_compute(
    client: OpenAI, server: GenerationServer, folder: Path, lora: object
) -> None:
    before = metric(server, "ttsnap_nfe_total")
    for _ in range(2):
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, lora)
        assert error.value.param == "lora"
        assert str(folder) not in str(error.value)
    assert metric(server, "ttsnap_nfe_total") == before


def test_a_service_without_loras_says_so(offer: ServingCatalog) -> None:
    with pytest.raises(RequestError, match="no LoRAs"):
        prepared_of(Generation(PROMPT, lora="sketch"), offer, ServiceLimits())


def test_pipes_and_links_that_lead_nowhere_are_no_loras(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder/pipe"):
        os.mkfifo(tmp_path / f"{name}.safetensors")
    for name, target in (("loop", "loop"), ("gone", "nothing")):
        (tmp_path / f"{name}.safetensors").symlink_to(tmp_path / f"{target}.safetensors")
    assert LoraFolder(tmp_path)() == {}


def test_the_folder_is_looked_up_at_every_request(
    client: OpenAI, server: GenerationServer, made: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def names() -> list[str]:
        first, *_ = client.models.list()
        assert first.to_dict() == client.models.retrieve("embedded").to_dict()
        listed: list[str] = first.to_dict()["loras"]  # type: ignore[assignment]
        return listed

    assert names() == ["ink.v2", "sketch", "stranger"]
    put(made, folder, "new", "ink.v2")
    assert names() == ["ink.v2", "new", "sketch", "stranger"]
    ink, sketch = picture(ask(client, "new")), picture(ask(client, "sketch"))
    assert apart(ink, sketch) > 8
    put(made, folder, "new", "sketch")
    assert apart(picture(ask(client, "new")), sketch) <= 1
    whole = (folder / "sketch.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING, "ttsnap"):
        (folder / "new.safetensors").write_bytes(whole[:-100])  # as while it is copied
        assert names() == names() == ["ink.v2", "sketch", "stranger"]
    assert caplog.text.count("new is not offered as a LoRA") == 1
    with pytest.raises(openai.BadRequestError, match="unknown LoRA 'new'"):
        ask(client, "new")
    (folder / "new.safetensors").write_bytes(whole)
    assert apart(picture(ask(client, "new")), sketch) <= 1
    (folder / "checkpoint.bin").write_bytes(whole)
    (folder / ".hidden.safetensors").write_bytes(whole)
    (folder / "new.safetensors").unlink()
    assert names() == ["ink.v2", "sketch", "stranger"]


def test_what_is_in_use_keeps_its_weights(pipe: Any, made: Path, tmp_path: Path) -> None:
    put(made, tmp_path, "sketch")
    offered, loaded = LoraFolder(tmp_path), LoadedLoras(pipe, 100)
    with loaded.under((offered()["sketch"],)) as twin:
        before = {name: tensor.clone() for name, tensor in twin.transformer.state_dict().items()}
        put(made, tmp_path, "sketch", "ink.v2")
        with loaded.under((offered()["sketch"],)) as other:
            now = {name: tensor for name, tensor in other.transformer.state_dict().items() if "lora" in name}
        assert all(torch.equal(tensor, before[name]) for name, tensor in twin.transformer.state_dict().items())
        assert now
        assert not any(torch.equal(tensor, before[name]) for name, tensor in now.items())


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """LoRAs are loaded once this is set."""
    read = threading.Event()

    def loaded(*given: Any, **more: Any) -> Any:
        assert read.wait(60)
        return under_lora(*given, **more)

    monkeypatch.setattr("ttsnap.service.loras.under_lora", loaded)
    yield read
    read.set()


def test_other_requests_go_on_while_one_waits_for_its_lora(
    client: OpenAI, pipe: Any, served: OneDevice, offer: ServingCatalog, folder: Path, slow: threading.Event
) -> None:
    fresh, limits = OneDevice(pipe, served.rewards), ServiceLimits(drain=0.1, active=1)
    with (
        serve(fresh, replace(offer, loras=LoraFolder(folder)), limits) as server,
        closing(client_of(server)) as mine,
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(ask, mine, lora) for lora in ("sketch", "ink.v2", ["sketch", "ink.v2"])]
        until(lambda: fresh.loras.loading and len(server.worker._waiting) == 3)
        assert ask(mine)["data"] == ask(client)["data"], "the only place is free while they wait"
        assert metric(server, "ttsnap_queue") == 3
        left = {"prompt": PROMPT, "lora": "stranger"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/images/generations", json=left, timeout=0.5)
        until(lambda: len(server.worker._waiting) == 3)
        assert not any(one.done() for one in waiting)
        slow.set()
        told = [one.result()["data"] for one in waiting]
        assert told == [ask(client, lora)["data"] for lora in ("sketch", "ink.v2", ["sketch", "ink.v2"])]


def test_what_waits_for_its_lora_is_refused_where_the_service_ends(
    pipe: Any, served: OneDevice, offer: ServingCatalog, folder: Path, slow: threading.Event
) -> None:
    fresh, offered = OneDevice(pipe, served.rewards), replace(offer, loras=LoraFolder(folder))
    server = serve(fresh, offered)
    with server, closing(client_of(server)) as mine, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, mine, "sketch")
        until(lambda: fresh.loras.loading)
        server.worker.drain()
        with pytest.raises(openai.InternalServerError, match="being stopped"):
            waiting.result()


def test_a_file_that_cannot_be_read_fails_the_request_that_wanted_it(
    pipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch, ink = (LoraFolder(folder)()[name] for name in ("sketch", "ink.v2"))
    loaded, wrong = LoadedLoras(pipe, 100), [torch.OutOfMemoryError(), torch.OutOfMemoryError()]

    def failing(*given: Any, **more: Any) -> Any:
        if wrong:
            raise wrong.pop()
        return under_lora(*given, **more)

    monkeypatch.setattr("ttsnap.service.loras.under_lora", failing)
    with pytest.raises(torch.OutOfMemoryError), loaded.under((sketch,)):
        pass
    assert not loaded.ready((sketch,))
    until(lambda: not loaded.loading)
    assert not loaded.ready((ink,)), "the error is not its own"
    with loaded.under((ink,)), loaded.under((sketch,)):
        assert loaded.taken() == {"loaded": 2}


def test_idle_engines_make_room_for_other_loras(
    pipe: Any, served: OneDevice, offer: ServingCatalog, folder: Path
) -> None:
    tight, offered = OneDevice(pipe, served.rewards), replace(offer, loras=LoraFolder(folder))
    tight.loras.most = max(lora.size for lora in offered.loras().values()) * pipe.transformer.dtype.itemsize
    with serve(tight, offered) as server, closing(client_of(server)) as client:
        alone = [picture(ask(client, lora, budget="8nfe")) for lora in ("sketch", "sketch", "ink.v2", "sketch")]
        assert [apart(each, alone[0]) <= 1 for each in alone] == [True, True, False, True]
        counts = [metric(server, f'ttsnap_loras_total{{event="{event}"}}') for event in ("loaded", "evicted")]
        assert counts == [3, 2]

        def one(lora: str) -> Image.Image | None:
            try:
                return picture(ask(client, lora, budget="8nfe"))
            except openai.InternalServerError as error:
                if (error.status_code, error.code) != (503, BUSY):
                    raise
                return None

        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(one, ["sketch", "ink.v2"] * 3))
        assert all(each is None or apart(each, alone[2 * (i % 2)]) <= 1 for i, each in enumerate(together))
        assert any(together)


def test_jobs_wait_for_room_and_make_what_requests_make(
    pipe: Any, served: OneDevice, offer: ServingCatalog, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = OneDevice(pipe, served.rewards)
    monkeypatch.setattr("ttsnap.service.jobs.AGAIN", 0.05)
    offered = replace(offer, loras=LoraFolder(folder))
    with serving(served, offered, tmp_path / "jobs") as server, closing(client_of(server)) as client:
        at_once = ask(client, "sketch")
        most, served.loras.most = served.loras.most, 0
        with pytest.raises(openai.BadRequestError, match="at most 0 MiB"):
            ask(client, "ink.v2")
        real, refused = served.loras._make_room, list[int]()

        def full(needed: int) -> None:
            refused.append(needed)
            served.loras._make_room = real if len(refused) == 3 else full  # type: ignore[method-assign]
            raise RequestError(503, "full", "lora", BUSY, retry_after=5)

        served.loras.most = most
        served.loras._make_room = full  # type: ignore[method-assign]
        told = ended(client, begun(client, **OWN, lora="ink.v2"))
        assert len(refused) == 3, "twice, with idle engines and without, and again a second later"
        assert told["status"] == "completed"
        assert told["data"] == ask(client, "ink.v2")["data"]
        told = ended(client, begun(client, **OWN, lora={"name": "sketch", "scale": 1}))
        assert told["data"] == at_once["data"]
        told = ended(client, begun(client, **OWN, lora="stranger"))
        assert (told["status"], told["error"]["param"]) == ("failed", "lora")
        assert "does not fit this model" in told["error"]["message"]


def test_edits_and_forms_take_them(editor: Any, drawn: list[Image.Image], folder: Path) -> None:
    own, data = copy.deepcopy(editor), png(drawn[0])
    call = {**few_steps("embedded").call, "strength": 0.75, "image": drawn[0]}
    offered, limits = replace(EDITS, loras=LoraFolder(folder)), ServiceLimits(drain=0.1, side=64)
    with serve(one_device(own), offered, limits) as server, closing(client_of(server)) as client:
        fields = {**OWN, "budget": "9nfe", "strength": 0.75}
        words = [{"name": "sketch", "scale": 0.5}, '{"name": "sketch", "int_id": 7, "scale": 0.5}', "none"]
        given = ("drawn.png", data)
        edited = [
            picture(client.images.edit(image=given, prompt=PROMPT, extra_body={**fields, "lora": lora}).to_dict())
            for lora in words
        ]
        bad = httpx.post(f"{server.url}/v1/images/edits", data={"prompt": PROMPT, "lora": "{"}, files={"image": data})
        assert bad.json()["error"]["param"] == "lora"
    load_lora(own, f"{folder / 'sketch.safetensors'}:0.5")
    out = own(prompt=PROMPT, search="best-of-n", reward="brightness", budget="9nfe", seed=3, **call)
    assert [apart(each, out.images[0]) <= 1 for each in edited] == [True, True, False]


def test_the_models_own_draft_is_taken_under_a_lora_where_it_is_asked_for(
    client: OpenAI, served: OneDevice, folder: Path
) -> None:
    offered = offer_of("embedded", served, None, {}, "auto", loras=str(folder))

    def draft(**own: Any) -> Any:
        return prepared_of(Generation(PROMPT, reward="scenes", **own), offered, ServiceLimits()).engine.sampler.draft

    assert [draft(), draft(lora={"name": "sketch", "scale": 0})] == ["embedded"] * 2
    assert [draft(lora="sketch"), draft(lora="sketch", draft=True)] == [None, "embedded"]
    own = {"search": "seed-pruning", "draft": True, "budget": "12nfe"}
    drafted = [ask(client, lora, **own) for lora in (None, "sketch")]
    assert [reply["usage"]["draft_calls"] > 0 for reply in drafted] == [True, True]
    assert [any("drafts were not checked" in each for each in reply["warnings"]) for reply in drafted] == [True, True]


def test_videos_take_them(tmp_path: Path) -> None:
    plain = twin("wan")
    for seed, name in enumerate(("grain", "slow")):
        save_lora(plain, tmp_path / name, seed=seed)
    served = one_device(plain)
    offered = offer_of("tiny", served, "tiny", {}, "none", loras=str(tmp_path))
    fields = {"prompt": PROMPT, "budget": "4nfe", "search": "best-of-n", "seed": 3, "size": "32x16", "num_frames": 5}

    def found(lora: object) -> torch.Tensor:
        wanted = validated(Video, {**fields, "steps": 4, "lora": lora})
        request = prepared_of(wanted, offered, ServiceLimits())
        spec = replace(request.engine, call={**CALL, **request.engine.call})
        with served.engine(spec) as engine:
            (result,) = search([request.prompt], request.algorithm, engine, request.budget, seed=request.seed)
        return result.images[0].pixels

    grain = {"name": "grain", "scale": 3.0}
    under, bare, *others = [found(lora) for lora in (grain, 0, "slow", [grain, "slow"])]
    assert len({each.numpy().tobytes() for each in (under, bare, *others)}) == 4
    load_lora(plain, f"{tmp_path / 'grain'}:3")
    try:
        assert torch.equal(under, found(0))
    finally:
        plain.unload_lora_weights()  # its networks are shared by other tests
    assert torch.equal(bare, found(0))


@pytest.mark.usefixtures("shallow_model")
def test_several_devices_give_what_one_gives(
    client: OpenAI, served: OneDevice, offer: ServingCatalog, folder: Path
) -> None:
    def pool(make: Callable[[], LiveEngine]) -> LocalPool:
        return LocalPool(make, 2)

    cpu = ModelOptions(device="cpu", dtype="float32")
    many = ManyDevices(served, cpu, {name: name for name in REWARDS}, pool)
    with serve(many, replace(offer, loras=LoraFolder(folder))) as spread, closing(client_of(spread)) as mine:
        for lora in (None, "sketch", {"name": "sketch", "scale": 0.5}):
            assert apart(picture(ask(mine, lora)), picture(ask(client, lora))) <= 1
        with pytest.raises(openai.BadRequestError, match="not fit"):
            ask(mine, "stranger")


def test_the_folder_and_the_model_are_checked_at_the_start(served: OneDevice, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--loras .*nowhere"):
        offer_of("embedded", served, None, {}, "none", loras=str(tmp_path / "nowhere"))
    assert offer_of("embedded", served, None, {}, "none", loras=str(tmp_path)).loras() == {}
    plain = OneDevice(FAMILIES["pixart_sigma"].build(), served.rewards)
    with pytest.raises(ValueError, match="loads no LoRA"):
        offer_of("embedded", plain, None, {}, "none", loras=str(tmp_path))
