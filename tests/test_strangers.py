"""Forged files for every reader: none of them imports, fetches, starts or opens anything because of
what a file says.

The interpreter itself is watched (audit hooks), and so are the functions by which Python code is
found. Every reader gets files that name code, addresses, models and other files in every place,
files with anything anywhere, files that are cut, changed and no files, and what is no data in their
format. It answers in one line of bounded size, soon.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import importlib.util
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.numpy import save

import ttsnap.pipelines
from tests import bombs
from tests.demo.conftest import FIELDS
from tests.watch import MODULE, planted, watched
from ttsnap import make_algorithm
from ttsnap.algorithms.best_of_n import OneOfGroup
from ttsnap.algorithms.pricing.forecast import Forecast
from ttsnap.bench.arms import read_arms
from ttsnap.bench.folder import open_bench
from ttsnap.bench.prompts import PromptRecord, read_prompt_set
from ttsnap.bench.summary import summarize
from ttsnap.check.ladder import Rung, Setup
from ttsnap.check.signal import planned
from ttsnap.check.verdict import verdict
from ttsnap.cli import distill, generate, replay
from ttsnap.core.grid import Grid
from ttsnap.core.looks import EstimatorAt, estimates
from ttsnap.demo.form import DemoLimits
from ttsnap.demo.form import read as read_form
from ttsnap.distill import checkpoints, data
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.data import Frames
from ttsnap.distill.evaluate import Evaluation
from ttsnap.files.pictured import is_video, texts_in, video_pixels
from ttsnap.files.plain_yaml import load_settings, read_yaml
from ttsnap.files.reading import picture_pixels, read_bytes, read_json, read_object, read_tensors
from ttsnap.files.run_folder import digest
from ttsnap.files.settings import build
from ttsnap.options.model import TEXT
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines.replay import no_reward
from ttsnap.recordings.folder import (
    HEADER_CRC,
    checksum,
    load_recording,
    open_recording,
    packed,
    progress,
    read_images,
)
from ttsnap.recordings.header import Header
from ttsnap.recordings.kept import KeptNumbers
from ttsnap.recordings.replay import Recording
from ttsnap.recordings.shards import Shard, ShardWriter, read_shard
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import EngineSpec, ModelDefaults
from ttsnap.results.media import save_video
from ttsnap.reward_models.noise_aware import files as adapter_files
from ttsnap.reward_models.noise_aware.student import NoiseAware
from ttsnap.reward_models.registry import REWARDS, make_reward
from ttsnap.reward_models.weights import read_state
from ttsnap.sampling.drafts import read_draft
from ttsnap.scenes import FOLDER

av = importlib.import_module("av") if importlib.util.find_spec("av") else None


def test_the_watch_sees(tmp_path, names):
    """Or else the tests below could not fail."""
    import socket
    import subprocess

    for act, seen in {
        lambda: importlib.import_module(MODULE): "imported",
        lambda: make_reward(f"{MODULE}.py:score"): "opened",
        lambda: make_reward(f"{MODULE}:score"): "imported",
        lambda: (tmp_path.parent / "other").write_text(""): "opened",
        lambda: socket.socket().close(): "socket.",
        lambda: subprocess.run([sys.executable, "-c", ""], check=True): "subprocess.Popen",
    }.items():
        sys.modules.pop(MODULE, None)
        with watched(tmp_path) as watch:
            act()
        assert any(what.startswith(seen) for what in watch.seen), (seen, watch.seen)


@pytest.fixture
def names(tmp_path, monkeypatch):
    return planted(tmp_path.parent / f"{tmp_path.name}-outside", monkeypatch)


# --- the readers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """doc: what a whole file says. write: puts such a file into a folder. read: what the toolkit
    does with it."""

    doc: Any
    write: Callable[[Path, Any], None]
    read: Callable[[Path], Any]


class Raw(bytes):
    """In the place of a document: the bytes themselves."""


def packed_json(doc):
    return doc if isinstance(doc, Raw) else json.dumps(doc).encode()


def as_json(name):
    return lambda folder, doc: (folder / name).write_bytes(packed_json(doc)) and None


def as_bytes(name, make):
    """Of files that hold no document."""
    return lambda folder, doc: (
        (folder / name).write_bytes(doc if isinstance(doc, Raw) else make()) and None
    )


PNG = {
    "ttsnap": "0.1.0",
    "model": "embedded",
    "sampler": "S",
    "kernel": "pipeline",
    "seed": 7,
    "prompt": "a red circle",
    "call": {"num_inference_steps": 4, "guidance_scale": 4.5, "sigmas": [1.0, 0.5]},
    "lora": None,
    "path": None,
    "times": "pipeline",
    "branched": False,
    "draft": "someone/draft:2",
    "search": {
        "algorithm": "best-of-n",
        "options": {},
        "budget": "8nfe",
        "reward": 0.5,
        "place": 2,
    },
}
VIDEO = {**PNG, "fps": 12.5}
CONFIG = {
    "prompts": ["a red circle"],
    "model": "embedded",
    "reward": ["scenes"],
    "report": "scenes-strict",
    "algorithm": "best-of-n",
    "options": {"n": 2},
    "call": {"clip_skip": 1},
    "budget": "8nfe",
}
DISTILL = {
    "reward": "scenes-learned",
    "student": {"kind": "lora", "options": {"a": 1}},
    "record": {"model": "embedded", "reward": "scenes", "call": {}},
    "steps": [1],
}
FORECAST = Forecast(
    (1.0, 0.5, 0.0),
    (EstimatorAt("draft:1", 0), *estimates(2)),
    np.zeros(2),
    np.eye(2),
    np.zeros((2, 2)),
    np.ones(2),
    np.eye(2),
    np.zeros(3),
    (-1.0, 1.0),
    5.0,
    np.zeros((1, 2)),
    np.ones((1, 2)),
)
NESTED = {
    "name": "nested",
    "first": {"name": "top-noises", "n": 4, "keep": 2},
    "second": {"name": "code", "n": 2},
}
EVALUATION = {
    "levels": [{"level": 0.5, "scenes": {"spearman": 0.5}}],
    "names": ["scenes"],
    "prompts": 1,
    "seeds": 2,
    "held_out": True,
}
CHECKED = {"model": "embedded", "steps": 20, "guidance_scale": 4, "figures": {"spearman": 0.4}}
DRAFT = {
    "format": 1,
    "first_time": 0.87,
    "guidance": None,
    "trained_for": {"steps": 20},
    "checked": [CHECKED],
}
RUNG = {
    "name": "signal",
    "figures": {"lead:pruning": {"value": 3.0, "low": 1.0, "high": 5.0, "unit": "%"}},
    "said": ["it holds"],
    "missing": {"rank:estimate:0.90:2": "why"},
    "holds": True,
    "done": True,
    "seconds": 1.5,
    "known": {
        "batch_size": 4,
        "seconds": {"nfe": 0.1},
        "varied": True,
        "latest": "rank:estimate:0.90:2",
        "schedules": {"pruning": {"name": "seed-pruning", "keep": [0.5]}},
    },
}
CHECKPOINT = {"step": 3, "files": {"model.safetensors": sha256().hexdigest()}, "about": {"lr": 1}}
SCORES = np.random.default_rng(0).random((2, 2, 3, 1))
RECORDING = Recording(("a", "b"), SCORES, Grid((1.0, 0.5, 0.0)), ("r",), info={"model": "embedded"})
HEADER = {**Header.of(RECORDING).to_json(), "images": True}


def found(prepared, pipe):
    """Stands for the search."""
    request = prepared.request
    assert isinstance(request.search, OneOfGroup)
    assert request.search.place < 1024
    assert request.engine.rewards == (no_reward,)
    call = request.engine.call
    assert set(call) <= set(pipe.call_arguments())
    assert all(
        isinstance(value, int | float | str | list | None)
        for value in [*call.values(), request.seed]
    )
    made = SimpleNamespace(
        pixels=torch.zeros(*pipe.frames, 3, 2, 2), seed=request.seed + request.search.place
    )
    return SimpleNamespace(results=[SimpleNamespace(images=[made])])


def write_png(folder, doc):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", packed_json(doc).decode(errors="replace"))
    Image.new("RGB", (2, 2)).save(folder / "x.png", pnginfo=info)


def write_video(ending):
    def write(folder, doc):
        frames = [Image.new("RGB", (2, 2), (100 * i, 0, 0)) for i in range(2)]
        frames[0].info["ttsnap"] = packed_json(doc).decode(errors="replace")
        save_video(folder / f"x.{ending}", frames)

    return write


def read_png(folder, name="x.png"):
    def load(model, *_, loras, task):
        assert (model, loras) == ("embedded", ())
        if task != TEXT:
            raise ValueError("as of load(), which knows the tasks of a model")
        arguments = {"num_inference_steps", "guidance_scale", "negative_prompt", "sigmas"}
        frames = () if name.endswith("png") else (2,)
        return SimpleNamespace(
            frames=frames,
            dtype=torch.float32,
            call_arguments=lambda: arguments,
            split_prompt_inputs=lambda prompts, call: (list(prompts), dict(call)),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "load_model", load)
        patch.setattr("ttsnap.pipelines.replay.run", found)
        replay.run(PARSERS["replay"].parse_args([str(folder / name), "--overwrite"]))


def read_config(folder):
    a = parsed("generate", folder)
    for name in (a.reward, a.report):
        assert all(part in REWARDS for part in ([name] if isinstance(name, str) else name or []))
    assert (a.model or "embedded", a.lora, a.preview_vae) == ("embedded", None, None)
    assert not os.path.isabs(str(a.prompts_file))
    make_algorithm(a.algorithm, **a.options)


def parsed(command, folder, *words):
    return PARSERS[command].parse_args(["--config", str(folder / "x.yaml"), *words])


def read_distill(folder):
    given = parsed("distill", folder, "--out", "x").nested()
    config = build(
        DistillConfig, {k: given[k] for k in given.keys() - {"trust", "out", "preset", "export"}}
    )
    assert config == load_settings(DistillConfig, folder / "x.yaml")
    assert config.reward in REWARDS
    assert ":" not in config.student.kind


def write_scores(folder, doc):
    """A finished recording whose header is forged, with the checksum of the forged header."""
    doc = {**(doc if isinstance(doc, dict) else {}), "crc32": zlib.crc32(SCORES.tobytes())}
    doc[HEADER_CRC] = checksum(doc)
    (folder / "scores.safetensors").write_bytes(
        save({"scores": SCORES}, {"recording": json.dumps(doc)})
    )
    (folder / "recording.json").write_text(json.dumps(doc))


def write_unit(folder, doc):
    header = Header.of(RECORDING)
    (folder / "recording.json").write_text(json.dumps(header.to_json()))
    about = {**doc, "header": digest(header.to_json())} if isinstance(doc, dict) else {}
    (folder / "unit-00000.safetensors").write_bytes(packed(SCORES, "unit", about))


def read_unit(folder):
    progress(folder)
    with open_recording(folder, Header.of(RECORDING)):
        pass


def read_recording(folder):
    load_recording(folder)
    assert not list(read_images(folder))


def read_shards(folder):
    read_recording(folder)
    Frames([str(folder)])


def write_reward(folder, doc):
    as_json("adapter.json")(folder, doc)
    if not (folder / "adapter.safetensors").exists():
        shutil.copy(FOLDER / "noise_aware" / "adapter.safetensors", folder)


def write_checkpoint(folder, doc):
    (folder / "00000003").mkdir(exist_ok=True)
    as_json("state.json")(folder / "00000003", doc)
    (folder / "00000003" / "model.safetensors").write_bytes(b"")


def checked(folder):
    return Setup(None, EngineSpec(None, ()), (), folder)


def read_rung(folder):
    found = checked(folder).climb("signal", lambda _: Rung("signal"), 1.0)
    found.lines()
    verdict({"parity": found, "signal": found})


def read_plan(folder):
    planned(checked(folder), 0)


def read_model(folder):
    """As far as reading goes: what diffusers then loads stands for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: None)
        patch.setattr(ttsnap.pipelines, "upgrade", lambda pipe: pipe)
        ttsnap.pipelines.load(folder)
    ttsnap.pipelines.defaults(folder)


def write_model(folder, doc):
    as_json("model_index.json")(folder, doc)
    as_json("ttsnap.json")(folder, doc.get("call") if isinstance(doc, dict) else doc)


def read_prompts(folder):
    for prompt in read_prompt_set(folder / "x.json").prompts:
        assert json.loads(json.dumps(prompt.metadata))["prompt"].strip() == prompt.text


def write_bench(folder, doc):
    (folder / "bench.json").write_text("{}")
    (folder / "best-of-n" / "00000").mkdir(parents=True, exist_ok=True)
    (folder / "best-of-n" / "00000" / "found-00000.json").write_text(json.dumps(doc))


def read_bench(folder):
    with open_bench(folder, {}) as there:
        assert not there.has("best-of-n", 0, 0)
        summarize(
            read_arms(["best-of-n"], SamplerOptions()),
            [PromptRecord(0, {"prompt": "a"})],
            there.found,
            True,
        )


LOOP = asyncio.new_event_loop()
"""Its sockets are there before anything is watched."""
KEYS = b"alice a-long-secret-key-1\nbob another-secret-key\n"
OFFER = ServingCatalog("embedded", ("scenes", "brightness"), lambda model: ModelDefaults())


def read_keys(folder):
    try:
        importlib.import_module("ttsnap.service.limits").Keys.read(folder / "keys")
    except ValueError as error:
        assert "secret-key" not in str(error)  # noqa: PT017
        raise


def read_body(folder):
    """A request's, as JSON and as a form."""
    from tests.service.asking import received
    from ttsnap.service.forms import sent_in
    from ttsnap.service.limits import RequestError, ServiceLimits

    body = read_bytes(folder / "x.json", 2**20)
    form = "multipart/form-data; boundary=x"
    with suppress(RequestError):
        LOOP.run_until_complete(sent_in(received(body, form), ServiceLimits()))
    try:
        LOOP.run_until_complete(sent_in(received(body, "application/json"), ServiceLimits()))
    except RequestError as refused:
        raise ValueError(str(refused)) from None


def read_picture(folder):
    data, said = read_bytes(folder / "x.png", 2**20), []
    for read, limit in (
        (picture_pixels, 10**6),
        (texts_in, None),
        (is_video, None),
        (video_pixels, 10**6),
    ):
        try:
            read(data, "x", formats=("PNG", "WEBP"), **({"most": limit} if limit else {}))
        except ValueError as error:
            said.append(str(error))
    if said:
        raise ValueError(said[0])


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros((2, 2, 2), np.float16))
    return file.getvalue()


def shard():
    file = io.BytesIO()
    writer = ShardWriter(file)
    writer.add(0, 7, 2, np.zeros((3, 4, 5)), {"latent": np.zeros((2, 2, 2))})
    writer.close()
    return file.getvalue()


def checkpoint():
    file = io.BytesIO()
    torch.save({"a": torch.zeros(2**10)}, file)
    return file.getvalue()


def read_tar(folder):
    path = folder / "unit-00000.tar"
    if not path.is_file() or path.stat().st_size > 10**6:  # as a recording's header says of it
        raise ValueError("another shard")
    list(data._entries(path))
    list(read_shard(path, Shard.of(path)))


def read_lora(folder):
    from tests.pipelines.tiny import shared
    from ttsnap.pipelines.lora import load_lora

    pipe = shared("sd3")
    try:
        load_lora(pipe, str(folder))
    finally:
        pipe.unload_lora_weights()


def lora():
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save as packed_tensors

    from tests.pipelines.tiny import shared

    net = shared("sd3").transformer
    net.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "made")
    found = get_peft_model_state_dict(net, adapter_name="made")
    shared("sd3").unload_lora_weights()
    return packed_tensors({f"transformer.{name}": tensor.clone() for name, tensor in found.items()})


PARSERS = {"generate": generate.parser(), "replay": replay.parser(), "distill": distill.parser()}
READERS = {
    "PNG": Reader(PNG, write_png, read_png),
    "WebP": Reader(VIDEO, write_video("webp"), lambda folder: read_png(folder, "x.webp")),
    **(
        {"mp4": Reader(VIDEO, write_video("mp4"), lambda folder: read_png(folder, "x.mp4"))}
        if av is not None
        else {}
    ),
    "tuned": Reader(
        {"name": "seed-pruning", "n": 4, "keep": [0.5], "levels": [0.4]},
        as_json("x.json"),
        lambda folder: make_algorithm(str(folder / "x.json")),
    ),
    "nested": Reader(
        NESTED, as_json("x.json"), lambda folder: make_algorithm(str(folder / "x.json"))
    ),
    "priced": Reader(
        {"name": "price-of-compute", "forecast": FORECAST.to_json()},
        as_json("x.json"),
        lambda folder: make_algorithm(str(folder / "x.json")),
    ),
    "config": Reader(CONFIG, as_json("x.yaml"), read_config),
    "distill config": Reader(DISTILL, as_json("x.yaml"), read_distill),
    "header": Reader({**HEADER, "shards": []}, write_scores, read_recording),
    "shards": Reader(
        {**HEADER, "shards": [{"name": "unit-00000.tar", "size": 0, "sha256": "0"}]},
        write_scores,
        read_shards,
    ),
    "settings": Reader(HEADER, as_json("recording.json"), progress),
    "unit": Reader(
        {"shard": {"name": "unit-00000.tar", "size": 0, "sha256": "0"}}, write_unit, read_unit
    ),
    "reward": Reader(
        json.loads((FOLDER / "noise_aware" / "adapter.json").read_text()) | {"info": {}},
        write_reward,
        lambda folder: NoiseAware.from_pretrained(folder),
    ),
    "draft": Reader(DRAFT, as_json("draft.json"), read_draft),
    "checkpoint": Reader(
        CHECKPOINT, write_checkpoint, lambda folder: checkpoints.latest(folder, {"lr": 1})
    ),
    "evaluation": Reader(
        EVALUATION, as_json("x.json"), lambda folder: Evaluation.read(folder / "x.json")
    ),
    "rung": Reader(RUNG, as_json("signal.json"), read_rung),
    "plan": Reader({"prompts": 3, "seeds": 8}, as_json("plan.json"), read_plan),
    "prompt set": Reader(
        [{"prompt": "a cup", "tag": "x", "tags": {"y": [1]}}], as_json("x.json"), read_prompts
    ),
    "benchmark": Reader(
        {
            "arm": "best-of-n",
            "repeat": 0,
            "index": 0,
            "image_bytes": 3,
            "seed": 4,
            "reward": 0.5,
            "scores": {"r": 0.5},
            "metrics": {},
            "spent": {"nfe": 3},
            "warnings": ["w"],
        },
        write_bench,
        read_bench,
    ),
    "form": Reader(
        FIELDS,
        as_json("x.json"),
        lambda folder: read_form(read_object(folder / "x.json", most=2**20), OFFER, DemoLimits()),
    ),
    **(
        {
            "body": Reader(
                {"prompt": "a cup", "n": 2, "search": {"name": "svdd"}},
                as_json("x.json"),
                read_body,
            )
        }
        if importlib.util.find_spec("starlette")
        else {}
    ),
    "any JSON": Reader({"a": [1]}, as_json("x.json"), lambda folder: read_json(folder / "x.json")),
    "any YAML": Reader({"a": [1]}, as_json("x.yaml"), lambda folder: read_yaml(folder / "x.yaml")),
    "keys": Reader(None, as_bytes("keys", lambda: KEYS), read_keys),
    "picture": Reader(None, as_bytes("x.png", bombs.png), read_picture),
    "tensors": Reader(
        None,
        as_bytes("x.safetensors", lambda: save({"a": np.zeros((2, 3))}, {"k": "v"})),
        lambda folder: read_tensors(folder / "x.safetensors"),
    ),
    "weights": Reader(
        None, as_bytes("x.pt", checkpoint), lambda folder: read_state(folder / "x.pt")
    ),
    "latents": Reader(
        None,
        as_bytes("x.npy", npy),
        lambda folder: data.decode(read_bytes(folder / "x.npy", 10**6), "latents"),
    ),
    "shard": Reader(None, as_bytes("unit-00000.tar", shard), read_tar),
    "targets": Reader(
        None,
        as_bytes("x", lambda: packed(np.arange(4.0), "targets", {})),
        lambda folder: KeptNumbers(folder / "x", "targets", {}, 4),
    ),
    "LoRA": Reader(None, as_bytes("x.safetensors", lora), read_lora),
    "model": Reader(
        {
            "_class_name": "StableDiffusion3Pipeline",
            "vae": ["diffusers", "AutoencoderKL"],
            "image_encoder": [None, None],
            "call": {"num_inference_steps": 4},
        },
        write_model,
        read_model,
    ),
}


@functools.cache
def base_of(spec):
    assert spec in REWARDS, spec
    return make_reward(spec) if spec.startswith("scenes") else None


@pytest.fixture(autouse=True)
def _inside(monkeypatch, tmp_path):
    """The noise-aware reward's base is loaded once, where it may be loaded."""
    monkeypatch.setattr(adapter_files, "make_reward", lambda spec, **_: base_of(spec))
    monkeypatch.chdir(tmp_path)


# --- forging --------------------------------------------------------------------------------------


def places(doc, path=()):
    """The path to everything in a document; of long lists, the first entries."""
    yield path
    for key, value in (
        doc.items()
        if isinstance(doc, dict)
        else enumerate(doc[:2])
        if isinstance(doc, list)
        else ()
    ):
        yield from places(value, (*path, key))


def changed(doc, path, value, add=None):
    """A copy with another value there; with `add`, the value goes under that new key of the object
    there instead."""
    made = copy.deepcopy({"": doc})
    at = made
    for key in ("", *path)[:-1]:
        at = at[key]
    last = ("", *path)[-1]
    if add is not None and isinstance(at[last], dict):
        at[last][add] = value
    else:
        at[last] = value
    return made[""]


def late(*_):
    raise TimeoutError("it takes too long")


@contextmanager
def soon():
    """A test that waits for longer fails, by the alarm's exception. The alarm that ends a test which
    hangs, pytest's, goes on afterwards."""
    before = signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, 40)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


def read_quietly(name, folder, doc=None, damage=lambda: None):
    """What the reader says of a forged file. The test fails where it does more than read, or raises
    anything else."""
    READERS[name].write(folder, doc)
    damage()
    said = None
    with watched(folder) as watch, soon():
        try:
            READERS[name].read(folder)
        except ValueError as error:
            said = str(error)
    assert not watch.seen, (doc, watch.seen)
    assert MODULE not in sys.modules
    assert said is None or ("\n" not in said and 0 < len(said) < 2000), said
    return said


@pytest.fixture
def name(request, tmp_path_factory):
    """Of a reader, which has read a whole file before: what it imports then is not because of a
    file."""
    if request.param not in WARM:
        reader, folder = READERS[request.param], tmp_path_factory.mktemp("warm")
        reader.write(folder, reader.doc)
        with suppress(ValueError):
            reader.read(folder)
        WARM.add(request.param)
    return str(request.param)


WARM = set()
every_reader = pytest.mark.parametrize("name", READERS, indirect=True)


@every_reader
def test_whole_files_are_read(name, tmp_path):
    said = read_quietly(name, tmp_path, READERS[name].doc)
    assert said is None or name == "shards"
    assert name != "shards" or "unit-00000.tar are missing" in str(said)


@every_reader
def test_nothing_that_a_file_names_is_run_fetched_or_opened(name, tmp_path, names):
    doc = READERS[name].doc
    for path in places(doc):
        for value in names:
            read_quietly(name, tmp_path, changed(doc, path, value))
        for key in ("report", "callback_on_step_end", "class_path", "config", "lora"):
            read_quietly(name, tmp_path, changed(doc, path, names[0], add=key))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -1, 0, 2**63, 1e308, "1e999", "nan", "x" * 10_000]),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=9), v, max_size=4),
    max_leaves=8,
)


@every_reader
@settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_anything_anywhere_in_a_file_is_one_sentence_or_read(name, tmp_path, data):
    doc = READERS[name].doc
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(doc))))
        doc = changed(
            doc, path, data.draw(anything), data.draw(st.sampled_from([None, None, "new"]))
        )
    read_quietly(name, tmp_path, doc)


KINDS = ("cut", "changed", "other", "folder", "holes", "pipe", "endless")
"""Of damage. A configuration may be a pipe, as the user names it, and a checkpoint's files as large
as they like."""
BY_USERS = {
    "config": ("pipe", "endless"),
    "distill config": ("pipe", "endless"),
    "checkpoint": ("holes",),
}


@every_reader
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_are_one_sentence_or_read(name, tmp_path, data):
    """Cut, changed, of another kind, or no files at all."""
    folder, doc = Path(tempfile.mkdtemp(dir=tmp_path)), READERS[name].doc
    READERS[name].write(folder, doc)
    path = data.draw(
        st.sampled_from([path for path in sorted(folder.rglob("*")) if path.is_file()])
    )
    whole = bytearray(path.read_bytes())
    kind = data.draw(
        st.sampled_from([kind for kind in KINDS if kind not in BY_USERS.get(name, ())])
    )
    if kind == "changed":
        for _ in range(data.draw(st.integers(1, 3)) if whole else 0):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    elif kind == "other":
        whole = bytearray(
            data.draw(st.sampled_from(bombs.bad_tensors(Path("ran"))) | st.binary(max_size=200))
        )

    def damage():
        path.unlink()
        if kind in ("cut", "changed", "other"):
            path.write_bytes(whole)
        elif kind == "holes":
            with path.open("wb") as file:
                file.truncate(2**40)
        else:
            {
                "pipe": os.mkfifo,
                "folder": Path.mkdir,
                "endless": lambda path: path.symlink_to("/dev/zero"),
            }[kind](path)

    read_quietly(name, folder, doc, damage)
    assert not Path("ran").exists()


WRAPPED = (
    "WebP",
    "mp4",
    "header",
    "shards",
    "settings",
    "unit",
    "shard",
    "checkpoint",
    "benchmark",
    "model",
)
"""Their documents are in what only a whole document makes."""
FORBIDDEN = {
    **{name: bombs.JSON[:-1] for name in READERS if name not in WRAPPED},
    **dict.fromkeys(("config", "distill config"), bombs.YAML[::3]),
    "any JSON": bombs.JSON,
    "any YAML": bombs.YAML,
    **dict.fromkeys(("tensors", "LoRA"), bombs.bad_tensors(Path("ran"))),
    "weights": (*bombs.bad_tensors(Path("ran")), bombs.repacked(checkpoint())),
    "picture": tuple(make() for make in bombs.PICTURES.values()),
    "keys": (
        b"alice",
        b"alice short",
        KEYS + b"carol a-long-secret-key-1 2",
        b"# nobody",
        b"",
        b"\xff",
    ),
    "shard": bombs.bad_tars(),
    "latents": (b"", b"PK", b"\x93NUMPY\x01\x00\xff\xff{", bombs.npy_header(10**13)),
}
"""By reader, what it refuses in the place of a document."""


@pytest.mark.parametrize("name", FORBIDDEN, indirect=True)
def test_what_is_no_data_is_refused_in_little_memory(name, tmp_path):
    for content in FORBIDDEN[name]:
        bad = Raw(content.encode() if isinstance(content, str) else content)
        if name == "any JSON" and bad == b"3":
            continue
        tracemalloc.start()
        said = read_quietly(name, tmp_path, bad)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert said, bad[:60]
        # numpy asks for all, and gets it unfilled
        assert most < 60 * len(bad) + 2**29 or name == "latents", bad[:60]
    assert not (tmp_path / "ran").exists()
