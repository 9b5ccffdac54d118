"""What clients may ask of searches; and what they and the log are told of what fails, which fails
alone."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tests.cluster.local import LocalPool
from tests.service.asking import PROMPT, SMALL, best, refusal, shown, until
from tests.service.conftest import REWARDS, one_device, serve
from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.core.looks import estimates
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines import defaults, recommended
from ttsnap.request.limits import PUBLIC_ALGORITHMS, search_of, searches_of
from ttsnap.request.offer import ServingCatalog
from ttsnap.reward_models.registry import make_rewards
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.service.engines import ManyDevices, OneDevice
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.monitoring import Discreet, JsonLines, log_request, log_to_stderr
from ttsnap.service.requests import Generation, prepared_of, validated
from ttsnap.service.server import with_drafts

STEPS = 6


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    """Files as `ttsnap tune` write them."""
    folder = tmp_path_factory.mktemp("searches")
    levels = pipe.denoiser(**{**defaults(), "num_inference_steps": STEPS}).grid.levels
    rng = np.random.default_rng(0)
    final = rng.standard_normal((20, 40, 1))
    forecast = fit(final + rng.standard_normal((20, 40, STEPS + 1)), levels, estimates(2, 4, STEPS))
    specs = {
        "tuned": {"name": "seed-pruning", "keep": [0.5], "levels": [0.7], "denoising_steps": STEPS},
        "priced": {"name": "price-of-compute", "forecast": forecast.to_json(), "n": 20},
    }
    for name, spec in specs.items():
        (folder / f"{name}.json").write_text(json.dumps(spec))
    return {name: folder / f"{name}.json" for name in specs}


@pytest.fixture(scope="module")
def caller(pipe, offer, files):
    searches = searches_of([f"{name}={path}" for name, path in files.items()])
    with serve(
        one_device(pipe, *REWARDS), replace(offer, searches=searches, draft="embedded")
    ) as caller:
        yield caller


def test_it_is_ready_once_the_model_is_loaded_and_says_where_that_cannot_be(pipe, offer):
    go, whole = threading.Event(), threading.Event()

    class Late(OneDevice):
        @contextmanager
        def engine(self, spec):
            assert go.wait(20)
            if not whole.is_set():
                raise NameError("name 'ftfy' is not defined")
            with super().engine(spec) as engine:
                yield engine

    with serve(Late(pipe, one_device(pipe, *offer.rewards).rewards), offer) as caller:

        def ready():
            reply = caller.get("/ready")
            return reply.status_code, reply.json()["status"]

        assert ready() == (503, "loading")
        assert caller.get("/health").status_code == 200
        go.set()
        until(lambda: ready()[1] != "loading")
        status, said = ready()
        assert (status, "(NameError)" in said) == (503, True)
        whole.set()
        assert caller.made()
        assert ready() == (200, "ready")


@pytest.mark.parametrize("search", ["tuned", "priced", {"name": "best-of-n", "n": 2}])
def test_searches_of_files_and_with_options(caller, pipe, files, search):
    steps = {} if search == "tuned" else {"num_inference_steps": STEPS}  # which it says itself
    reply = caller.made(search=search, steps=steps.get("num_inference_steps"), budget="18nfe")
    spec = str(files[search]) if isinstance(search, str) else search
    out = pipe(PROMPT, search=spec, reward="scenes", **steps, seed=3, budget="18nfe").search[0]
    assert (best(reply)[0], reply["usage"]["nfe"]) == (out.best.seed, out.spent.nfe)
    told = json.loads(shown(reply).info["ttsnap"])
    assert str(files["tuned"].parent) not in json.dumps(told)
    kinds = {"tuned": "seed-pruning", "priced": "price-of-compute"}
    assert told["search"]["algorithm"] == kinds.get(str(search), "best-of-n")
    assert refusal(caller.send(search={"name": "priced"}))[:2] == (400, "search"), (
        "a file has no options"
    )
    drafted = caller.made(search="seed-pruning", steps=STEPS, draft=True, budget="12nfe")
    assert drafted["usage"]["draft_calls"] > 0
    assert json.loads(shown(drafted).info["ttsnap"]).get("draft") is None


def test_a_request_that_says_nothing_has_the_models_own_draft_where_it_helps(pipe, offer):
    rewards, limits = {name: make_rewards(name)[0] for name in REWARDS}, ServiceLimits()

    def draft(offer, **own):
        wanted = validated(Generation, {"prompt": PROMPT, **own})
        return prepared_of(wanted, offer, limits).engine.sampler.draft

    auto, none = (with_drafts(offer, name, pipe, rewards) for name in ("auto", "none"))
    assert (
        draft(auto)
        == draft(auto, negative_prompt="", size="32x32", reward="brightness")
        == "embedded"
    )
    left_out = [
        {"draft": False},
        {"steps": 10},
        {"guidance_scale": 2.0},
        {"negative_prompt": "blue"},
        {"search": "best-of-n"},
        {"search": "svdd"},
        {"kernel": "ode"},
        {"size": "16x16"},
        {"search": {"name": "seed-pruning", "n": 8}},
    ]
    assert [draft(auto, **own) for own in left_out] == [None] * len(left_out)
    assert draft(auto, draft=True, steps=10) == "embedded"
    assert draft(none) is None
    with pytest.raises(RequestError, match="no drafter"):
        draft(none, draft=True)
    other = with_drafts(offer, "hot:2", pipe, rewards)
    assert (draft(other), draft(other, draft=True)) == (None, "hot:2")
    rewards["scenes"].tokens = 100
    assert draft(with_drafts(offer, "auto", pipe, rewards)) is None


def test_the_operator_s_searches_are_checked(files, tmp_path):
    (tmp_path / "climb.json").write_text('{"name": "noise-ascent"}')
    wrong = {
        str(files["tuned"]): "NAME=FILE.json",
        f"svdd={files['tuned']}": "'svdd' already",
        f"mine={tmp_path / 'none.json'}": "none.json",
        f"climb={tmp_path / 'climb.json'}": "gradients",
    }
    for given, said in wrong.items():
        with pytest.raises(ValueError, match=said):
            searches_of([given])


def fails(*_, **__):
    raise IndexError("out of range, in /srv/secret")


@pytest.mark.parametrize(
    ("broken", "with_others", "own", "told", "word"),
    [
        (
            ("ttsnap.reward_models.closed_form.Brightness.__call__", fails),
            True,
            {"reward": "brightness"},
            (503, "reward", "reward_failed"),
            "brightness",
        ),
        (
            (type(make_algorithm("evolution")), "step", fails),
            True,
            {"search": {"name": "evolution", "n": 2}},
            (500, "search", None),
            "IndexError",
        ),
        (("ttsnap.pipelines.run.record_of", fails), False, {}, (500, None, None), "IndexError"),
    ],
)
def test_what_fails_fails_alone(
    caller,
    broken,
    with_others,
    own,
    told,
    word,
):
    """An algorithm's mistake, a reward's, and one in what is told: searches on the same engine go
    on."""
    failed = caller.metric('requests_total{outcome="failed"}')
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        good = pool.submit(caller.made, budget="48nfe") if with_others else None
        until(lambda: good is None or caller.metric("active") == 1)
        patch.setattr(*broken)
        reply = caller.send(**{**SMALL, **own})
        assert (refusal(reply), word in reply.text, "secret" in reply.text) == (told, True, False)
        assert reply.headers.get("retry-after") == ("30" if reply.status_code == 503 else None)
        assert good is None or len(good.result()["data"]) == 1
    assert len(caller.made(**own)["data"]) == 1
    assert caller.metric('requests_total{outcome="failed"}') == failed + 1


def test_every_name_that_is_offered_can_be_asked_for_with_its_defaults():
    for name in PUBLIC_ALGORITHMS:
        plain, same = search_of(name, {}, 4000), search_of({"name": name}, {}, 4000)
        assert make_algorithm(plain) == make_algorithm(same)


# --- secrets: where rewards fail, all are told offered names and our own sentences only -----------


ADDRESS = "http://user:secret@127.0.0.1:9/score?key=hidden"
SECRETS = ("user", "secret", "127.0.0.1", "hidden", "refused to serve", "vault")


class Vault(RewardModel):
    """A reward whose own name is its address, which it tells, with its prompt, when it fails: on
    all images, or but for its first batch; and on some prompts."""

    name, tokenizer, max_tokens = ADDRESS, None, None

    def __init__(self, good=0):
        self.good = good

    def __call__(self, images, prompts, level=None):
        self.good -= 1
        if self.good >= 0:
            return images.mean((1, 2, 3))
        raise OSError(f"the vault at {ADDRESS} refused to serve {prompts[0]!r}")

    def check(self, prompts):
        if "circle" in prompts[0]:
            raise ValueError(f"the vault at {ADDRESS} refused to serve {prompts[0]!r}")


@pytest.fixture
def guarded(pipe):
    rewards = {
        "vault-a": Vault(1),
        "vault-b": Vault(),
        "scenes": make_rewards("scenes")[0],
    }
    with serve(
        OneDevice(pipe, rewards), ServingCatalog("embedded", tuple(rewards), recommended)
    ) as caller:
        yield caller


@pytest.fixture
def asked(caplog):
    """Gives the reply to a request. Neither it, with the metadata of its PNGs, nor at last the log
    tells secrets."""
    negative = "a blurry yak"
    told = {negative}

    def ask(caller, **own):
        reply = caller.send(**{**SMALL, "negative_prompt": negative, **own})
        told.add(own.get("prompt", PROMPT))
        text = reply.text + str(reply.headers)
        for data in re.findall(r'"b64_json": ?"([^"]+)"', reply.text):
            text += base64.b64decode(data).decode("latin-1")
        assert not [secret for secret in SECRETS if secret in re.sub(r"vault-[ab]", "", text)]
        return reply

    caplog.set_level(logging.INFO)
    yield ask
    records = [
        record for record in caplog.get_records("call") if not record.name.startswith("http")
    ]
    for form in (Discreet(), JsonLines()):
        lines = "\n".join(map(form.format, records))
        assert not [secret for secret in (*told, "user:", "hidden") if secret in lines]
        assert "cannot" in lines or "refused to serve" in lines, "it tells what fails"


@pytest.mark.parametrize("stream", [False, True])
def test_a_reward_that_fails_in_part_is_told_by_its_offered_name(guarded, asked, stream):
    reply = asked(
        guarded, reward="vault-a", report=["vault-b", "scenes"], budget="96nfe", stream=stream
    )
    assert reply.status_code == 200
    told = json.loads(reply.text.rpartition("data: ")[2] if stream else reply.text)
    warnings = " / ".join(told["warnings"])
    assert "no score for particle" in warnings
    assert "reported reward vault-b did not score" in warnings
    image = told if stream else told["data"][0]
    assert (list(image["scores"]), list(image["metrics"])) == (["vault-a"], ["vault-b", "scenes"])


def test_what_fails_from_the_start_or_cannot_be_read_is_told_by_its_offered_name(guarded, asked):
    failed = (503, "reward", "reward_failed")
    assert refusal(asked(guarded, reward=["scenes", "vault-b"])) == failed
    refused = asked(guarded, reward="vault-b", prompt="a red circle")
    assert (refusal(refused)[:2], "reward vault-b" in refused.text) == ((400, "prompt"), True)
    # which call themselves alike
    assert refusal(asked(guarded, reward=["vault-b", "vault-a"])) == failed
    assert refusal(asked(guarded, prompt="a shy zebra"))[:2] == (400, "prompt")


@pytest.mark.usefixtures("shallow_model")
def test_what_a_device_cannot_load_is_told_without_its_address(pipe, asked, monkeypatch):
    specs = {"vault-a": "scenes", "vault-b": "scenes"}
    here = OneDevice(pipe, {name: make_rewards("scenes")[0] for name in specs})
    engines = ManyDevices(
        here, ModelOptions(device="cpu"), specs, lambda recipe: LocalPool(recipe, 1)
    )
    with serve(engines, ServingCatalog("embedded", tuple(specs), recommended)) as caller:
        for names in (["vault-a"], ["vault-b", "vault-a"]):
            assert list(asked(caller, reward=names).json()["data"][0]["scores"]) == names

        def gone(*_, **__):
            raise ValueError(f"no reward server: cannot connect to {ADDRESS}")

        monkeypatch.setattr("ttsnap.service.engines._reward", gone)
        assert refusal(asked(caller, reward="vault-b")) == (503, "reward", "reward_failed")
        monkeypatch.setattr("ttsnap.service.engines._loras", gone)
        reply = asked(caller, reward="vault-b")
        assert (refusal(reply)[0], "RuntimeError" in reply.text) == (500, True)


@pytest.mark.parametrize("requests", [True, False])
@pytest.mark.parametrize("lines", ["text", "json"])
def test_the_log_on_stderr_holds_no_credentials(capsys, caplog, lines, requests):
    caplog.set_level(logging.INFO, "ttsnap.service.access")  # and, at the end, as it was
    log_to_stderr(requests=requests, lines=lines)
    log = logging.getLogger("ttsnap")
    try:
        raise OSError(f"cannot reach {ADDRESS}, Authorization: Bearer sk-hidden")
    except OSError:
        log.exception("at %s\nand on", ADDRESS)
    log_request("GET", "/x", 200, 0.5, "alice", 4)
    log.removeHandler(log.handlers[-1])
    told = capsys.readouterr().err
    assert "at http://127.0.0.1:9/score?..." in told
    assert not [secret for secret in ("user", "secret", "hidden") if secret in told]
    assert ("GET /x 200 0.500 s key=alice nfe=4" in told) is requests
    if lines == "json":
        error, *more = map(json.loads, told.splitlines())
        assert (error["level"], error["logger"], error["time"][-6:]) == (
            "error",
            "ttsnap",
            "+00:00",
        )
        assert [(line["status"], line["key"]) for line in more] == [(200, "alice")] * requests
