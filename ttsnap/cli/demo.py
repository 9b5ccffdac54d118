"""`ttsnap demo`: a web page on which searches can be watched."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttsnap.cli import arguments, common
from ttsnap.cli.common import loading
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.core.checklist import LIST
from ttsnap.demo.form import DemoLimits
from ttsnap.extras import install
from ttsnap.files.settings import Count, Port
from ttsnap.options.model import EMBEDDED, ModelOptions
from ttsnap.options.option import option
from ttsnap.options.sampler import AUTO, HOT, SamplerOptions

DESCRIPTION = """Open a web page on which to run searches, watch them and compare them.

It listens on this machine only and shows the embedded model, unless told otherwise. Visitors choose prompt, algorithm,
budget and settings within limits; what else they may do is up to you (docs/demo.md). It needs gradio:
pip install gradio.

examples:
  ttsnap demo --open
  ttsnap demo --model stabilityai/stable-diffusion-3.5-medium --device cuda \\
      --reward imagereward pickscore
  ttsnap demo --share --max-budget 400 --queue-size 8
"""
CLOSED_FORMS = ("place", "compressibility", "incompressibility", "brightness", "colourfulness")
LEARNED = ("imagereward", "pickscore", "hpsv2.1", "clip", "aesthetics")


@dataclass(frozen=True)
class DemoOptions:
    """What the demo offers to visitors."""

    model: str | None = option(
        None,
        "embedded (the default), scenes-turbo, signs, a diffusers folder, or a hub id; visitors"
        " cannot change it",
    )
    any_model: bool = option(
        False,
        "let visitors load any model by hub id or path, even where others can reach the demo;"
        " without --model, --host and --share they may anyway",
    )
    reward: tuple[str, ...] = option(
        (),
        "the rewards that visitors choose from, the first being preset: names, file.py:function,"
        " http://HOST:PORT (default: what the model goes with)",
    )
    draft: str = option(
        AUTO,
        "the drafter that visitors may use, as `ttsnap generate --draft` takes it: auto (the"
        " model's own, which is preset, or hot), none, or another",
    )
    port: Port | None = option(None, "port to listen on", unset="the first free one from 7860")
    share: bool = option(False, "a public address through gradio's tunnel, for 1 week")
    queue_size: Count = option(20, "most visitors that wait; one search runs at a time")
    browser: bool = option(False, "open the page in the browser", flag="open")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    arguments.add_options(p, DemoOptions)
    arguments.add_options(p, common.ListenOptions, "host")
    arguments.add_options(p, DemoLimits)
    arguments.add_options(p, ModelOptions, "device", "dtype")
    return p


def run(a: Arguments) -> int:
    """Serve until interrupted."""
    offer = catalog_of(a)
    limits = arguments.read(DemoLimits, a)
    common.opening().check_here(common.opening().placement(a.device, a.dtype)[0])
    root = Path(tempfile.mkdtemp(prefix="ttsnap-demo-"))
    # the files of visitors are deleted then, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        page = load_page(a, offer, limits, root)
        from ttsnap.demo.app import serve

        print(
            f"limits: {limits.nfe} evaluations and {limits.seconds:g} s a search, {limits.side}"
            " pixels; Ctrl-C ends"
        )
        with common.listening(a):
            where = {"server_name": a.host, "server_port": a.port}
            serve(page, limits, share=a.share, inbrowser=a.open, **where)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


def load_page(a: Arguments, offer: Any, limits: DemoLimits, root: Path) -> Any:
    """The page, with the model loaded. ValueError where gradio is missing, or the model."""
    cache = root / "cache"
    cache.mkdir(parents=True)
    # gradio reads it at import: uploads and downloads stay in this folder.
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        with loading("gradio"):
            from ttsnap.demo.app import build_page
    except ImportError as error:
        raise ValueError(f"the demo needs gradio ({error}): {install('demo')}") from None
    from ttsnap.demo.worker import Models

    models = Models(
        lambda name, task=None: common.load_model(name, a.device, a.dtype, task=task),
        judge_of,
    )
    models.pipeline(offer.model)
    return build_page(offer, limits, models, root, a.queue_size)


def judge_of(prompt: str, name: str) -> Any:
    """The judge of images (3, H, W). Only those of packaged models can be right or wrong; None for
    a size that is not judged, and where the judge is not installed."""
    from ttsnap.pipelines.packaged import MODELS
    from ttsnap.reward_models.registry import make_reward

    if name not in MODELS:
        return lambda image: None
    right = MODELS[name].right
    try:
        reward = make_reward(right.reward)
    except ValueError:
        return lambda image: None

    def judge(image: Any) -> bool | None:
        try:
            return bool(right.met(np.asarray(reward(image.float().cpu()[None], [prompt])))[0])
        except ValueError:
            return None

    return judge


def catalog_of(a: Arguments) -> Any:
    """The choices of visitors: fewer where strangers can reach the page."""
    from ttsnap.pipelines import recommended
    from ttsnap.pipelines.packaged import MODELS
    from ttsnap.request.offer import ServingCatalog

    model = a.model or EMBEDDED
    alone = a.host in ("127.0.0.1", "localhost", "::1") and not a.share
    any_model = a.any_model or (a.model is None and alone)
    rewards = list(a.reward)
    if not rewards:
        ours = MODELS.get(model)
        learned = LEARNED if ours is None or any_model else ()
        # Visitors may take the other packaged models, too, each of which goes with its own reward.
        others = [one.rewards[0] for one in MODELS.values() if ours is not None and any_model]
        mine = () if ours is None else (*ours.rewards, LIST)
        rewards = list(dict.fromkeys([*mine, *others, *learned, *CLOSED_FORMS]))
    own = recommended(model).draft
    draft = SamplerOptions(draft=a.draft).drafted_by(own or HOT).draft
    first = draft is not None and draft == own
    return ServingCatalog(
        model, tuple(rewards), recommended, draft=draft, drafts_first=first, any_model=any_model
    )
