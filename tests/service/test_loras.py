"""LoRAs that requests choose by name: what they give, what is refused, and what becomes of their
weights."""

from __future__ import annotations

import base64
import copy
import io
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.cluster.local import LocalPool
from tests.pipelines.tiny import FAMILIES, save_lora
from tests.service.asking import EDITED, PROMPT, SMALL, Caller, apart, best, refusal, shown, until
from tests.service.conftest import EDITS, REWARDS, Keeping, few_steps, one_device, serve
from tests.shallow import shallow
from ttsnap.cli import main
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.lora import load_lora, under_lora
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.engines import ManyDevices, OneDevice
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.loras import BUSY, LoadedLoras, LoraFolder
from ttsnap.service.opening import offer_of
from ttsnap.service.requests import Generation, prepared_of, validated

HALF = {"name": "sketch", "scale": 0.5}


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
def offer(offer: ServingCatalog, folder: Path) -> ServingCatalog:
    return replace(offer, loras=LoraFolder(folder))


@pytest.fixture(scope="module")
def served(pipe: Any) -> OneDevice:
    return one_device(pipe, *REWARDS)


@pytest.fixture
def fresh(pipe: Any, served: OneDevice) -> OneDevice:
    """Has loaded none."""
    return OneDevice(pipe, served.rewards)


def under(caller: Caller, *lora: object, **own: object) -> dict[str, Any]:
    """The reply to a request under a LoRA, or without."""
    return caller.made(
        reward="brightness", **({"lora": lora[0]} if lora and lora[0] else {}), **own
    )


def refused(caller: Caller, lora: object) -> tuple[object, ...]:
    return refusal(caller.send(**{**SMALL, "lora": lora}))


@pytest.fixture(scope="module")
def unserved(pipe: Any) -> Any:
    """A copy made before the pipeline is in use by another thread."""
    return copy.deepcopy(pipe)


@pytest.fixture(scope="module")
def caller(served: OneDevice, offer: ServingCatalog, unserved: Any) -> Iterator[Caller]:
    with serve(served, replace(offer, draft="embedded")) as caller:
        yield caller


@pytest.mark.parametrize(("name", "scale"), [("sketch", 0.5), ("ink.v2", 1.0)])
def test_an_image_is_what_the_pipeline_gives_under_the_lora(
    caller: Caller, unserved: Any, folder: Path, name: str, scale: float
) -> None:
    own = copy.deepcopy(unserved)
    load_lora(own, f"{folder / name}{'' if name == 'ink.v2' else '.safetensors'}:{scale}")
    call = {
        ("num_inference_steps" if name == "steps" else name): value for name, value in SMALL.items()
    }
    out = own(PROMPT, draft=None, reward="brightness", **call)
    for lora in (
        {"name": name, "scale": scale},
        {"lora_name": name, "lora_scale": scale},
    ):
        reply = under(caller, lora)
        assert apart(shown(reply), out.images[0]) <= 1, "rounding may differ with the batch"
        assert best(reply)[0] == out.search[0].best.seed
        assert reply["warnings"] == []
    told = shown(reply).info["ttsnap"]
    assert json.loads(told)["lora"] == (f"{name}:{scale}" if scale != 1 else name)
    assert str(folder) not in told
    assert apart(shown(under(caller)), out.images[0]) > 8


def test_an_image_under_several_is_made_again_from_its_png(
    caller: Caller, folder: Path, tmp_path: Path
) -> None:
    reply = under(caller, [HALF, "ink.v2"])
    (tmp_path / "a.png").write_bytes(base64.b64decode(reply["data"][0]["b64_json"]))
    loras = [f"--lora={folder / 'ink.v2'}", f"--lora={folder / 'sketch.safetensors'}:0.5"]
    with shallow():
        assert main(["replay", str(tmp_path / "a.png"), *loras]) == 0
    assert apart(Image.open(tmp_path / "replays" / "a.png"), shown(reply)) <= 1


def test_requests_of_one_batch_have_each_its_own_and_nothing_leaks(
    caller: Caller, pipe: Any
) -> None:
    def counts() -> list[float]:
        return [caller.metric(f'loras_total{{event="{event}"}}') for event in ("loaded", "evicted")]

    before, weights = (
        counts(),
        {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()},
    )
    flags = [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    wanted: list[Any] = [
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
    loaded, evicted = (now - one for now, one in zip(counts(), before, strict=True))
    assert loaded <= 3, "at most once each, and sketch besides ink"
    assert evicted == 0
    assert caller.metric("lora_bytes") > 0


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
        "stranger",
        ["sketch", "stranger"],
    ],
)
def test_what_is_not_offered_or_does_not_fit_is_refused_before_compute(
    caller: Caller, folder: Path, lora: object
) -> None:
    before = caller.metric("nfe_total")
    for _ in range(2):
        reply = caller.send(lora=lora)
        assert refusal(reply)[:2] == (400, "lora")
        assert str(folder) not in reply.text
    assert caller.metric("nfe_total") == before


def test_the_folder_is_looked_up_at_every_request(
    caller: Caller, made: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def names() -> list[str]:
        (first,) = caller.get("/v1/models").json()["data"]
        assert first == caller.get("/v1/models/embedded").json()
        listed: list[str] = first["loras"]
        return listed

    assert names() == ["ink.v2", "sketch", "stranger"]
    put(made, folder, "new", "ink.v2")
    assert names() == ["ink.v2", "new", "sketch", "stranger"]
    ink, sketch = shown(under(caller, "new")), shown(under(caller, "sketch"))
    assert apart(ink, sketch) > 8
    put(made, folder, "new", "sketch")
    assert apart(shown(under(caller, "new")), sketch) <= 1
    whole = (folder / "sketch.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING, "ttsnap"):
        (folder / "new.safetensors").write_bytes(whole[:-100])  # as while it is copied
        assert names() == names() == ["ink.v2", "sketch", "stranger"]
    assert caplog.text.count("new is not offered") == 1
    assert refused(caller, "new") == (400, "lora", "invalid_value")
    (folder / "new.safetensors").write_bytes(whole)
    assert apart(shown(under(caller, "new")), sketch) <= 1
    (folder / "new.safetensors").unlink()
    (folder / "inside").mkdir()
    for name in ("checkpoint.bin", ".hidden.safetensors"):
        (folder / name).write_bytes(whole)
    for name in ("pipe", "inside/pipe"):
        os.mkfifo(folder / f"{name}.safetensors")
    for name, target in (("loop", "loop"), ("gone", "nothing")):
        (folder / f"{name}.safetensors").symlink_to(folder / f"{target}.safetensors")
    assert names() == ["ink.v2", "sketch", "stranger"]


def test_what_is_in_use_keeps_its_weights(pipe: Any, made: Path, tmp_path: Path) -> None:
    put(made, tmp_path, "sketch")
    offered, loaded = LoraFolder(tmp_path), LoadedLoras(pipe, 100)
    with loaded.under((offered()["sketch"],)) as twin:
        before = {name: tensor.clone() for name, tensor in twin.transformer.state_dict().items()}
        put(made, tmp_path, "sketch", "ink.v2")
        with loaded.under((offered()["sketch"],)) as other:
            now = {
                name: tensor
                for name, tensor in other.transformer.state_dict().items()
                if "lora" in name
            }
        assert all(
            torch.equal(tensor, before[name])
            for name, tensor in twin.transformer.state_dict().items()
        )
        assert now
        assert not any(torch.equal(tensor, before[name]) for name, tensor in now.items())


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """LoRAs are loaded once this is set."""
    read = threading.Event()

    def loaded(*given: Any) -> Any:
        assert read.wait(60)
        return under_lora(*given)

    monkeypatch.setattr("ttsnap.service.loras.under_lora", loaded)
    yield read
    read.set()


def test_other_requests_go_on_while_one_waits_for_its_lora(
    caller: Caller, fresh: OneDevice, offer: ServingCatalog, slow: threading.Event
) -> None:
    wanted: tuple[Any, ...] = ("sketch", "ink.v2", ["sketch", "ink.v2"])
    with (
        serve(fresh, offer, ServiceLimits(drain=0.1, active=1)) as mine,
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(under, mine, lora) for lora in wanted]
        until(lambda: fresh.loras.loading and len(mine.worker._waiting) == 3)
        assert under(mine)["data"] == under(caller)["data"], (
            "the only place is free while they wait"
        )
        assert mine.metric("queue") == 3
        mine.left(lora="stranger")
        until(lambda: len(mine.worker._waiting) == 3)
        assert not any(one.done() for one in waiting)
        slow.set()
        assert [one.result()["data"] for one in waiting] == [
            under(caller, lora)["data"] for lora in wanted
        ]


def test_what_waits_for_its_lora_is_refused_where_the_service_ends(
    fresh: OneDevice, offer: ServingCatalog, slow: threading.Event
) -> None:
    with serve(fresh, offer) as mine, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(refused, mine, "sketch")
        until(lambda: fresh.loras.loading)
        mine.worker.drain()
        assert waiting.result() == (503, None, "stopping")


def test_a_file_that_cannot_be_read_fails_the_request_that_wanted_it(
    pipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch, ink = (LoraFolder(folder)()[name] for name in ("sketch", "ink.v2"))
    loaded, wrong = LoadedLoras(pipe, 100), [torch.OutOfMemoryError(), torch.OutOfMemoryError()]

    def failing(*given: Any) -> Any:
        if wrong:
            raise wrong.pop()
        return under_lora(*given)

    monkeypatch.setattr("ttsnap.service.loras.under_lora", failing)
    with pytest.raises(torch.OutOfMemoryError), loaded.under((sketch,)):
        pass
    assert not loaded.ready((sketch,))
    until(lambda: not loaded.loading)
    assert not loaded.ready((ink,)), "the error is not its own"
    with loaded.under((ink,)), loaded.under((sketch,)):
        assert loaded.taken() == {"loaded": 2}


def test_idle_engines_make_room_for_other_loras(fresh: OneDevice, offer: ServingCatalog) -> None:
    fresh.loras.most = (
        max(lora.size for lora in offer.loras().values()) * fresh.pipe.transformer.dtype.itemsize
    )
    with serve(fresh, offer) as tight:
        alone = [shown(under(tight, lora)) for lora in ("sketch", "sketch", "ink.v2", "sketch")]
        assert [apart(each, alone[0]) <= 1 for each in alone] == [True, True, False, True]
        counts = [
            tight.metric(f'loras_total{{event="{event}"}}') for event in ("loaded", "evicted")
        ]
        assert counts == [3, 2]
        with ThreadPoolExecutor(6) as pool:
            bodies = [
                {**SMALL, "reward": "brightness", "lora": lora} for lora in ["sketch", "ink.v2"] * 3
            ]
            together = list(pool.map(lambda body: tight.send(**body), bodies))
        found = [i for i, reply in enumerate(together) if reply.status_code == 200]
        assert found
        assert all(apart(shown(together[i].json()), alone[2 * (i % 2)]) <= 1 for i in found)
        assert {refusal(reply) for i, reply in enumerate(together) if i not in found} <= {
            (503, "lora", BUSY)
        }


def test_jobs_wait_for_room_and_make_what_requests_make(
    caller: Caller, fresh: OneDevice, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.service.jobs.AGAIN", 0.05)
    with keeping(fresh) as mine:
        most, fresh.loras.most = fresh.loras.most, 0
        reply = mine.send(lora="ink.v2")
        assert (refusal(reply)[:2], "at most 0 MiB" in reply.text) == ((400, "lora"), True)
        real, tries = fresh.loras._make_room, list[int]()

        def full(needed: int) -> None:
            tries.append(needed)
            fresh.loras._make_room = real if len(tries) == 3 else full  # type: ignore[method-assign]
            raise RequestError(503, "full", "lora", BUSY, retry_after=5)

        fresh.loras.most, fresh.loras._make_room = most, full  # type: ignore[method-assign]
        for lora in ("ink.v2", {"name": "sketch", "scale": 1}):
            told = mine.ended(mine.begun(lora=lora, reward="brightness"))
            assert told["status"] == "completed"
            assert told["data"] == under(caller, lora)["data"]
            assert len(tries) == 3, "twice, with idle engines and without, and again a second later"
        told = mine.ended(mine.begun(lora="stranger"))
        assert (told["status"], told["error"]["param"]) == ("failed", "lora")
        assert "does not fit" in told["error"]["message"]


def test_edits_and_forms_take_them(editor: Any, drawn: list[bytes], folder: Path) -> None:
    own, fields = (
        copy.deepcopy(editor),
        {"prompt": PROMPT, **SMALL, "budget": "9nfe", "strength": "0.75"},
    )
    offered, limits = replace(EDITS, loras=LoraFolder(folder)), ServiceLimits(drain=0.1, side=64)
    with serve(one_device(own), offered, limits) as mine:
        edited = [
            mine.ask(
                "POST", EDITED, data={**fields, **lora}, files={"image": ("a.png", drawn[0])}
            ).json()
            for lora in (
                {"lora[name]": "sketch", "lora[scale]": "0.5"},
                {"lora": '{"name": "sketch", "scale": 0.5}'},
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
    assert [apart(shown(each), out.images[0]) <= 1 for each in edited] == [True, True, False]


def test_the_models_own_draft_is_taken_under_a_lora_where_it_is_asked_for(
    caller: Caller, served: OneDevice, folder: Path
) -> None:
    offered = offer_of("embedded", served, None, {}, "auto", loras=str(folder))

    def draft(**own: Any) -> Any:
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
def test_several_devices_give_what_one_gives(
    caller: Caller, served: OneDevice, offer: ServingCatalog
) -> None:
    cpu = ModelOptions(device="cpu", dtype="float32")
    many = ManyDevices(
        served, cpu, {name: name for name in REWARDS}, lambda make: LocalPool(make, 2)
    )
    with serve(many, offer) as spread:
        for lora in (0, "sketch", HALF):
            assert apart(shown(under(spread, lora)), shown(under(caller, lora))) <= 1
        assert refused(spread, "stranger")[:2] == (400, "lora")


def test_the_folder_and_the_model_are_checked_at_the_start(
    served: OneDevice, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"--loras .*nowhere"):
        offer_of("embedded", served, None, {}, "none", loras=str(tmp_path / "nowhere"))
    assert offer_of("embedded", served, None, {}, "none", loras=str(tmp_path)).loras() == {}
    plain = OneDevice(FAMILIES["pixart_sigma"].build(), served.rewards)
    with pytest.raises(ValueError, match="loads no LoRA"):
        offer_of("embedded", plain, None, {}, "none", loras=str(tmp_path))
