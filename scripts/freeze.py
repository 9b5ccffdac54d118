"""Freezes what no change of the code's shape may move, and compares two such folders.

python scripts/freeze.py write FOLDER [PART ...]     # in the root of any checkout, some minutes on one core
python scripts/freeze.py compare BEFORE AFTER        # prints what differs; exit status 1 where anything does

The parts are the metadata and pixels that searches leave behind, the replies of services, what
networks are given, and random searches with their ledgers. `pairs` has what reaches far (finished
drafts, variety, requirements, diversity), each alone and every two of them. Times, versions and ids
are left out.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
sys.path.insert(0, os.getcwd())  # the checkout's own package and tests
logging.disable(logging.ERROR)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

VOLATILE = re.compile(
    "seconds|^created|_at$|_id$|^id$|joules|energy|memory|co2|pue|versions|timings|verifier_share"
)
"""Keys of values that differ from run to run, or tell of the machine."""
PROMPT, OTHER = "two red circles and a blue square", "a green cross"
QUICK = ["--steps", "6", "--device", "cpu", "--dtype", "float32", "--batch-size", "8"]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def still(value: Any, key: str = "") -> Any:
    """A value as JSON, without what is volatile; pictures and tensors by digests of their
    pixels."""
    if VOLATILE.search(key) and not isinstance(value, dict | list):
        return "*"
    if isinstance(value, torch.Tensor):
        return [
            list(value.shape),
            str(value.dtype),
            digest(value.detach().cpu().float().numpy().tobytes()),
        ]
    if isinstance(value, np.ndarray | np.generic):
        return (
            still(torch.tensor(value))
            if value.ndim and value.dtype.kind in "fiub"
            else value.tolist()
        )
    if isinstance(value, Image.Image):
        told = {name: text for name, text in value.info.items() if name in ("parameters", "ttsnap")}
        return {"pixels": digest(value.tobytes()), "size": list(value.size), **still(told)}
    if isinstance(value, dict):
        return {str(name): still(inside, str(name)) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [still(inside, key) for inside in value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            if value.startswith(("{", "[")):
                return still(json.loads(value))
        return re.sub(r"ttsnap [0-9][^\s,]*|/tmp/[^\s\"']*|[0-9.]+ s\b", "*", value)
    if isinstance(value, float) and value != value:
        return "nan"
    return value if isinstance(value, int | float | bool | None) else type(value).__name__


def response_fields(result: Any) -> dict[str, Any]:
    """A Result: its images, ledger, moves and table."""
    table = {
        name: getattr(result.particles, name)
        for name in ("seed", "parent", "step", "alive", "scores")
    }
    told = {
        "spent": result.spent.to_json(),
        "trace": list(result.trace),
        "warnings": list(result.warnings),
    }
    return still(
        {"images": [vars(candidate) for candidate in result.images], "table": table, **told}
    )  # type: ignore[no-any-return]


def files_in(folder: Path) -> dict[str, Any]:
    """Every file: pictures by pixels and metadata, tables and JSON by values."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".webp") and path.name != "summary.png":
            found[path.relative_to(folder).as_posix()] = body_of(path.read_bytes())
        elif path.suffix in (".json", ".jsonl", ".csv"):
            text = path.read_text()
            found[path.relative_to(folder).as_posix()] = still(
                text if path.suffix == ".json" else text.splitlines()
            )
    return found


def body_of(data: bytes, kind: str = "image") -> Any:
    """JSON with the pictures in it, events, a picture, or the pictures of a zip."""
    if kind == "text/event-stream":
        return [
            pictured(json.loads(line[6:]))
            for line in data.decode().splitlines()
            if line.startswith("data: ")
        ]
    if kind == "application/json":
        return pictured(json.loads(data))
    if kind == "application/zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: body_of(archive.read(name)) for name in archive.namelist()}
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return still(picture)


def pictured(value: Any) -> Any:
    """JSON in which pictures, in base64 or as data addresses, are told as pictures."""
    if isinstance(value, list):
        return [pictured(inside) for inside in value]
    if not isinstance(value, dict):
        return value
    told = {key: pictured(inside) for key, inside in value.items()}
    for key in {"b64_json", "url"} & value.keys():
        told[key] = body_of(base64.b64decode(str(value[key]).rpartition(",")[2]))
    return still(told)


# --- the parts ------------------------------------------------------------------------------------


def searches() -> dict[str, Any]:
    """Searches over all doors but the service: what they write, and what they are."""
    from tests.shallow import shallow
    from ttsnap.cli import main

    Path("set.jsonl").write_text(
        f'{{"tag": "counting", "prompt": "{PROMPT}"}}\n{{"tag": "one", "prompt": "{OTHER}"}}'
    )
    Path("own.yaml").write_text(
        "budget: 30nfe\nalgorithm: best-of-n\nseed: 5\nnegative_prompt: noise\n"
    )
    many, redraw = (
        ["--budget", "40nfe", "--keep", "3"],
        ["--task", "image-to-image", "--image", "given.png"],
    )
    lines = {
        "pruned": [
            "generate",
            PROMPT,
            "--budget",
            "90nfe",
            "--keep",
            "2",
            "--report",
            "brightness",
            "--draft",
            "auto",
        ],
        "finished": [
            "generate",
            OTHER,
            "--budget",
            "60nfe",
            "--draft",
            "embedded",
            "--finish",
            "0.6",
        ],
        "branched": [
            "generate",
            PROMPT,
            "--budget",
            "60nfe",
            "--algorithm",
            "svdd",
            "--kernel",
            "sde",
            "--seed",
            "9",
        ],
        "shared": [
            "generate",
            PROMPT,
            OTHER,
            "--budget",
            "30nfe",
            "--shared",
            "--utility",
            "[1, 2]",
            "--reward",
            "[scenes, brightness]",
            "--negative-prompt",
            "noise",
        ],
        "compared": [
            "generate",
            OTHER,
            "--budget",
            "30nfe",
            "--compare",
            "best-of-n",
            "--options.keep",
            "[0.5]",
        ],
        "diverse": ["generate", OTHER, *many, "--diverse", "--algorithm", "best-of-n"],
        "required": ["generate", OTHER, *many, "--require", "brightness>0.2", "--seed", "3"],
        "redrawn": ["generate", OTHER, "--budget", "20nfe", *redraw, "--strength", "0.7"],
        "configured": [
            "generate",
            OTHER,
            "--config",
            "own.yaml",
            "--call.max_sequence_length",
            "32",
        ],
        "benched": [
            "bench",
            "--prompts-file",
            "set.jsonl",
            "--budget",
            "12nfe",
            "--algorithms",
            "best-of-n",
            "svdd kernel=sde n=2",
            "--report",
            "brightness",
            "--sheets",
        ],
        "recorded": ["record", OTHER, PROMPT, "--seeds", "6", "--images"],
    }
    found: dict[str, Any] = {}
    with shallow():
        for name, words in lines.items():
            found[name] = {"status": main([*words, *QUICK, "--out", name]), **files_in(Path(name))}
        for name, more in {"pruned": [], "redrawn": redraw[2:], "finished": []}.items():
            path = next(Path(name).glob("01-*.png"))
            again = Path("replays", name)
            status = main(["replay", str(path), "--device", "cpu", *more, "--out", str(again)])
            same = body_of((again / path.name).read_bytes()) == body_of(path.read_bytes())
            found[f"replayed {name}"] = {"status": status, "same": same}
        found["called"], found["page"] = called(), page()
    found["nodes"] = nodes()
    return found


FEATURES = {
    "finish": ["--draft", "embedded", "--finish", "0.6:4"],
    "variety": ["--variety", "repel:2"],
    "require": ["--require", "brightness>0.2"],
    "diverse": ["--diverse"],
}
"""Of a search, as the command line has them."""
RECORDED = ("finish", "variety")
"""Those that recordings have, too."""


def pairs() -> dict[str, Any]:
    """Searches, replays, recordings and plans by each feature, and by every two of them; also what
    refuses both."""
    from tests.shallow import shallow

    chosen = [names for size in range(3) for names in itertools.combinations(FEATURES, size)]
    found: dict[str, Any] = {}
    with shallow():
        for names in chosen:
            words = [word for name in names for word in FEATURES[name]]
            for algorithm in ("best-of-n", "seed-pruning"):
                name = " ".join((algorithm, *names))
                found[name] = paired(algorithm, words, Path(name))
            if set(names) <= set(RECORDED):
                name = " ".join(("recording", *names))
                found[name] = recorded(words, Path(name))
    return found


def paired(algorithm: str, words: list[str], folder: Path) -> dict[str, Any]:
    """A search by the command line, what it says, and its best image made again."""
    folder.mkdir()
    search = [
        "generate",
        OTHER,
        "--algorithm",
        algorithm,
        "--budget",
        "60nfe",
        "--keep",
        "3",
        "--seed",
        "3",
    ]
    found = {
        "run": said([*search, *QUICK, *words, "--out", str(folder / "made")]),
        **files_in(folder),
    }
    for path in sorted((folder / "made").glob("01-*.png")):
        again = folder / "again"
        found["replay"] = said(["replay", str(path), "--device", "cpu", "--out", str(again)])
        found["same"] = body_of((again / path.name).read_bytes()) == body_of(path.read_bytes())
    return found


def recorded(words: list[str], folder: Path) -> dict[str, Any]:
    """A recording, its numbers, and searches that are played back on it, one by one and in
    lockstep."""
    from ttsnap import BestOfN, SeedPruning, search
    from ttsnap.recordings.folder import load_recording
    from ttsnap.recordings.replay import ReplayEngine
    from ttsnap.simulation.simulate import curve

    folder.mkdir()
    run = said(
        ["record", OTHER, PROMPT, "--seeds", "6", *QUICK, *words, "--out", str(folder / "made")]
    )
    found: dict[str, Any] = {"run": run, **files_in(folder)}
    if run["status"]:
        return found
    recording = load_recording(folder / "made")
    looks = {str(look): scores for look, scores in recording.looks.items()}
    found["scores"] = still({"steps": recording.scores, "scored": recording.scored, "looks": looks})
    for algorithm in (BestOfN(4), SeedPruning(4, (0.5,))):
        name = type(algorithm).__name__
        results = search(recording.prompts, algorithm, ReplayEngine(recording), "40nfe", seed=0)
        found[f"replayed {name}"] = [response_fields(result) for result in results]
        found[f"curve {name}"] = still(
            vars(curve(recording, algorithm, ["20nfe", "40nfe"], repeats=5))
        )
    return found


def said(words: list[str]) -> dict[str, Any]:
    """How a command ends, what it prints but for shares of seconds, and what it refuses."""
    from ttsnap.cli import main

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(words)
    refused = [line for line in error.getvalue().splitlines() if line.startswith("ttsnap: error")]
    told = [line for line in out.getvalue().splitlines() if " between them;" not in line]
    return still({"status": status, "out": told, "refused": refused})  # type: ignore[no-any-return]


def called() -> dict[str, Any]:
    """Calls of pipelines in Python, with what no text can say."""
    from ttsnap import SeedPruning
    from ttsnap.pipelines import load
    from ttsnap.sampling.interpolants import Linear

    pipe = load(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    calls: dict[str, Any] = {
        "objects": {
            "search": SeedPruning(keep=(0.5,)),
            "reward": lambda images, prompts: images.mean((1, 2, 3)),
            "kernel": "sde",
            "path": Linear(),
        },
        "lists": {
            "search": "best-of-n",
            "prompt": [PROMPT, OTHER],
            "negative_prompt": ["noise", "stars"],
            "num_images_per_prompt": 2,
        },
        "read": {
            "search": {"name": "best-of-n", "n": 3},
            "reward_prompts": OTHER,
            "utility": "rank_sum",
            "reward": ["scenes", "brightness"],
        },
        "latent": {"search": "best-of-n", "output_type": "latent", "budget": None, "effort": 0.02},
    }
    found = {}
    for name, more in calls.items():
        generator = torch.Generator().manual_seed(4)
        given = {
            "prompt": OTHER,
            "budget": "36nfe",
            "num_inference_steps": 6,
            "generator": generator,
            **more,
        }
        out = pipe(**given)
        found[name] = {
            "images": still(out.images),
            "results": [response_fields(result) for result in out.search],
        }
    return found


def page() -> dict[str, Any]:
    """Searches by the page's form: their files, and the lines that repeat them."""
    from ttsnap.cli import common, demo
    from ttsnap.demo import form
    from ttsnap.demo.live import stream
    from ttsnap.demo.panels import Hand
    from ttsnap.demo.worker import Models

    given = {
        "prompt": PROMPT,
        "algorithm": "seed-pruning",
        "rewards": ["scenes"],
        "budget": "60nfe",
        "steps": 6,
        "seed": 3,
        "keep": 2,
        "size": 0,
        "model": "embedded",
        "negative": "noise",
        "guidance": None,
        "draft": False,
        "picture": None,
        "strength": 0.7,
        "diverse": False,
    }
    limits, offer = (
        form.DemoLimits(),
        demo.catalog_of(demo.parser().parse_args(["--device", "cpu"])),
    )
    models = Models(lambda name, task=None: common.load_model(name, "cpu", "float32", task=task))
    cases = {
        "alone": {},
        "compared": {"keep": 1},
        "drafted": {"draft": True, "steps": 20, "budget": "100nfe"},
        "redrawn": {"picture": Path("given.png").read_bytes()},
    }
    found = {}
    for name, more in cases.items():
        folder, request = Path(f"page-{name}"), form.read({**given, **more}, offer, limits)
        folder.mkdir()
        *_, last = stream(request, models, limits, Hand(), folder, compare=name == "compared")
        found[name] = {"python": last.python, "command": last.command, **files_in(folder)}
    return found


def nodes() -> dict[str, Any]:
    """Searches by the node of ComfyUI, over the double of the tests."""
    from tests.comfyui import double_nodes
    from tests.comfyui.hostile import given_to
    from tests.comfyui.test_nodes import linked, offered

    with double_nodes.nodes_of_comfyui(), tempfile.TemporaryDirectory() as folder:
        known = offered(Path(folder))
        node, given = (
            known["TtsnapSearchSampler"],
            given_to(known["TtsnapSearchSampler"], linked(known)),
        )
        cases: dict[str, Any] = {"pruned": {}, "kept": {"keep": 2, "algorithm": "best-of-n"}}
        return {
            name: still(node.execute(**{**given, "steps": 4, **more}).result)
            for name, more in cases.items()
        }


def replies() -> dict[str, Any]:
    """What services of the embedded model answer to texts and to edits, and one of a tiny model of
    videos to those."""
    from diffusers import WanPipeline

    from tests.pipelines.modular import tiny_videos

    own = {"budget": "16nfe", "steps": 4, "seed": 3, "prompt": PROMPT}
    images, video, best = "/v1/images/generations", "/v1/videos", {"search": "best-of-n"}
    tried: dict[str, Any] = {
        "plain": {},
        "two": {"n": 2, "report": "brightness"},
        "jpeg": {"output_format": "jpeg"},
        "url": {"response_format": "url", **best},
        "file": {"response_format": "file"},
        "zip": {"response_format": "file", "n": 2, **best},
        "branched": {"search": "svdd"},
        "options": {"search": {"name": "best-of-n", "n": 3}},
        "required": {"require": "brightness>0.2"},
        "refused": {"require": "brightness>2"},
        "diverse": {"diverse": True, "n": 3, **best},
        "required and diverse": {"require": "brightness>0.2", "diverse": True, "n": 2, **best},
        "drafted and required": {"require": "brightness>0.2", "budget": "60nfe", "draft": True},
        "drafted and diverse": {"diverse": True, "n": 2, "budget": "60nfe", "draft": True},
        "drafted": {"budget": "60nfe", "draft": True},
        "sized": {"size": "32x48"},
        "undrafted": {"draft": False, "quality": "low", "budget": None},
        "both": {"quality": "low"},
        "negative": {"negative_prompt": "noise", "guidance_scale": 3},
        "no budget": {"budget": "2nfe"},
        "aliases": {
            "num_inference_steps": 5,
            "steps": None,
            "width": 32,
            "height": 32,
            "user": "me",
        },
        "stream": {"stream": True, "partial_images": 2, **best},
        "no steps": {"steps": 0},
        "no field": {"seeed": 3},
        "no model": {"model": "dall-e-3"},
        "no search": {"search": "seed-prunin"},
        "no lora": {"lora": "film"},
        "no reward": {"reward": "imagereward"},
        "no prompt": {"prompt": None},
        "no world": {"prompt": "an elephant"},
        "no kernel": {"search": "svdd", "kernel": "ode"},
    }
    found: dict[str, Any] = {}
    with service("embedded", "--rewards", "scenes", "brightness") as client:
        for name, more in tried.items():
            body = {key: value for key, value in {**own, **more}.items() if value is not None}
            found[name] = ask(client, "POST", images, json=body)
        for path in ("/v1/models", "/v1/models/nobody", "/health", "/nowhere"):
            found[path] = ask(client, "GET", path)
        found["job"] = job(client, images, json={**own, "background": True})
    with service("embedded", "--task", "image-to-image", "--rewards", "brightness") as client:
        for name, more in {
            "edit": {},
            "edit of two": {"n": "2", "strength": "0.5", "negative_prompt": "noise"},
        }.items():
            files = {"image": ("given.png", Path("given.png").read_bytes())}
            found[name] = ask(client, "POST", "/v1/images/edits", data={**own, **more}, files=files)
    WanPipeline(**{**tiny_videos.wan().components, "transformer_2": None}).save_pretrained("wan")
    call = {
        "num_inference_steps": 4,
        "height": 16,
        "width": 32,
        "num_frames": 5,
        "max_sequence_length": 16,
    }
    Path("wan/ttsnap.json").write_text(json.dumps(call))
    with service(str(Path("wan").absolute()), "--rewards", "brightness") as client:
        wanted = {"prompt": "a cat", "budget": "3images", "seed": 3, "output_format": "png", **best}
        found["video at once"] = ask(client, "POST", f"{video}/sync", data=wanted)
        found["video"] = job(client, video, data={**wanted, "fps": 8})
        found["no image"] = ask(client, "POST", images, json=own)
    return found


@contextlib.contextmanager
def service(*words: str) -> Iterator[Any]:
    """A client of a service that runs meanwhile."""
    import httpx

    from tests.service.conftest import command

    with (
        command(*words, "--device", "cpu", "--dtype", "float32") as (_, url),
        httpx.Client(base_url=url, timeout=600) as client,
    ):
        yield client


def ask(client: Any, method: str, path: str, **more: Any) -> list[Any]:
    """Status, type and body of a reply."""
    reply = client.request(method, path, **more)
    kind = reply.headers["content-type"].partition(";")[0]
    return [reply.status_code, kind, body_of(reply.content, kind)]


def job(client: Any, path: str, **more: Any) -> list[Any]:
    """The job at its end, and the file that it made."""
    name = client.post(path, **more).json()["id"]
    while client.get(f"{path}/{name}").json()["status"] in ("queued", "in_progress"):
        time.sleep(0.2)
    return [ask(client, "GET", f"{path}/{name}"), ask(client, "GET", f"{path}/{name}/content")]


def calls() -> dict[str, Any]:
    """What every call of a network of a tiny pipeline is given, and what the search finds."""
    from tests.pipelines.modular.tiny import CASES, built
    from tests.pipelines.tiny import FAMILIES
    from ttsnap.pipelines import upgrade

    pipes: dict[str, Any] = {name: (family.build, family.call) for name, family in FAMILIES.items()}
    for name in (
        "sdxl image2image",
        "sdxl inpainting",
        "flux2_klein edit",
        "wan",
        "sdxl controlnet",
        "sd3",
    ):
        pipes[f"modular {name}"] = (
            (lambda case=CASES[name]: built(case.pipeline, case.parts)),
            CASES[name].call,
        )
    hows: dict[str, Any] = {
        "pruned": {"search": {"name": "seed-pruning", "n": 3, "keep": [0.5]}},
        "branched": {"search": {"name": "svdd", "n": 2}, "kernel": "sde"},
    }
    found: dict[str, Any] = {}
    for name, (build, call) in pipes.items():
        pipe, seen = upgrade(build()), list[str]()
        pipe.set_progress_bar_config(disable=True)

        def hook(module: Any, args: Any, kwargs: Any, seen: list[str] = seen) -> None:
            seen.append(digest(json.dumps(still([args, kwargs])).encode()))

        (getattr(pipe, "transformer", None) or pipe.unet).register_forward_pre_hook(
            hook, with_kwargs=True
        )
        for how, more in hows.items():
            seen.clear()
            given = {
                "num_inference_steps": 4,
                "reward": "brightness",
                "budget": "16nfe",
                "seed": 7,
                **more,
            }
            try:
                out = pipe(prompt="a cat", **{**call, **given})
                found[f"{name} {how}"] = [list(seen), response_fields(out.search[0])]
            except ValueError as error:
                found[f"{name} {how}"] = str(error)
    return found


def drawn() -> dict[str, Any]:
    """300 random searches, over a counted mixture and over scores by a rule, with their ledgers."""
    from tests.counted import Brightness, Counted
    from tests.scripted import Scripted, noisy
    from ttsnap import Budget, make_algorithm, search
    from ttsnap.core.selection import Selection
    from ttsnap.engine.live import LiveEngine
    from ttsnap.options.engine import EngineOptions
    from ttsnap.sampling.kernels import KERNELS

    weights, means = (
        torch.tensor([0.1, 0.2, 0.3, 0.4]),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    )
    names = [
        "best-of-n",
        "seed-pruning",
        "svdd",
        "smc",
        "zero-order",
        "best-first",
        "evolution",
        "funnel",
    ]
    found: dict[str, Any] = {}
    for number in range(300):
        rng, fails = np.random.default_rng(number), 0.1 * (number % 3 == 0)
        name, n = str(rng.choice(names)), int(rng.integers(2, 9))
        caps = {
            "nfe": int(rng.integers(8, 120)),
            **({"decodes": int(rng.integers(2, 20))} if rng.random() < 0.3 else {}),
        }
        options, seed, keep = (
            {"n": n} if rng.random() < 0.7 else {},
            int(rng.integers(0, 99)),
            int(rng.integers(1, 4)),
        )
        shared, prompts = bool(rng.random() < 0.3), ["a", "b", "c"][: number % 3 + 1]
        engine: Any = Scripted(noisy(number, fail=fails))
        if number % 2:
            model = Counted(means, torch.full((4,), 0.3), weights, steps=8)
            rewards = [Brightness("one", nan=fails, spared=True), Brightness("two")]
            engine = LiveEngine(
                model, rewards, EngineOptions(batch_size=4), kernel=KERNELS["sde"](model)
            )
        told: Any
        try:
            made = make_algorithm(name, **options)
            results = search(
                prompts,
                made,
                engine,
                Budget(**caps),
                seed=seed,
                selection=Selection(keep=keep),
                shared=shared,
            )
            told = [response_fields(result) for result in results]
        except (ValueError, RuntimeError) as error:
            told = str(error)
        found[f"{number:03d} {name} {caps} {options} seed {seed} keep {keep} shared {shared}"] = (
            told
        )
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "drawn": drawn,
    "calls": calls,
    "searches": searches,
    "pairs": pairs,
    "replies": replies,
}


def write(folder: Path, names: list[str]) -> None:
    """Freeze these parts, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as inside, contextlib.chdir(inside):
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("given.png")
        for name in names:
            begin = time.monotonic()
            (folder / f"{name}.json").write_text(
                json.dumps(PARTS[name](), indent=1, sort_keys=True)
            )
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict | list) and value:
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inside, f"{at} / {key}")
    else:
        yield at, value


def compare(before: Path, after: Path) -> int:
    """Print what differs, 40 lines of each part at most. How many values do."""
    wrong = 0
    for name in sorted(path.stem for path in after.glob("*.json")):
        one, other = (
            dict(leaves(json.loads((folder / f"{name}.json").read_text())))
            for folder in (before, after)
        )
        known = [at for at in {**one, **other} if not VOLATILE.search(at.rpartition(" ")[2])]
        differ = [at for at in known if one.get(at, "nothing") != other.get(at, "nothing")]
        wrong += len(differ)
        print(f"{name}: {len(differ)} of {len(one)} values differ")
        for at in differ[:40]:
            print(
                f"  {at}: {str(one.get(at, 'nothing'))[:200]} ->"
                f" {str(other.get(at, 'nothing'))[:200]}"
            )
    return wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"] and len(sys.argv) > 2:
        write(Path(sys.argv[2]).absolute(), sys.argv[3:] or list(PARTS))
    elif sys.argv[1:2] == ["compare"] and len(sys.argv) == 4:
        sys.exit(bool(compare(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        sys.exit(__doc__)
