"""The running server: strangers, many visitors at once, stopping, and files that come from the visitor's own search."""

from __future__ import annotations

import io
import itertools
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from PIL import Image

from tests import bombs
from ttsnap.algorithms.by_hand import UserCommand
from ttsnap.demo.form import DemoLimits, read, read_wish
from ttsnap.demo.handlers import Handlers, Running
from ttsnap.demo.live import Turns
from ttsnap.demo.stream import PERIOD, stream
from ttsnap.demo.tally import tally
from ttsnap.demo.worker import Models
from ttsnap.files.pictured import Picture
from ttsnap.pipelines import load, recommended
from ttsnap.request.offer import ServingCatalog
from ttsnap.results.record import read_record
from ttsnap.scenes import sample_prompts

from .conftest import FIELDS, PROMPT

gradio_client = pytest.importorskip("gradio_client")
pytestmark = pytest.mark.usefixtures("shallow_model")


@pytest.fixture(autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client leaves a folder in the system's temporary one for every file that it gets."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))


def connect(address: str, folder: Path) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=folder, analytics_enabled=False)


def ask(client: Any, api: str = "/search", **changes: Any) -> Any:
    return client.predict(*{**FIELDS, **changes}.values(), api_name=api)


@pytest.fixture
def client(server: tuple[str, Path], tmp_path: Path) -> Iterator[Any]:
    found = connect(server[0], tmp_path)
    yield found
    found.close()


def files_of(answer: Any) -> dict[str, Path]:
    return {Path(name).name: Path(name) for name in answer[3]}


def winner_of(files: dict[str, Path]) -> dict[str, Any]:
    return read_record(next(path for name, path in files.items() if name.startswith("01-seed"))).to_json()


def test_the_snippet_finds_the_same_winner(client: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for algorithm in ("seed-pruning", "code"):
        answer = ask(client, algorithm=algorithm, keep=2)
        files = files_of(answer)
        payload = winner_of(files)
        assert {"sheet.png", "trace.json"} < set(files)
        assert len(files) == 4
        assert payload["prompt"] == PROMPT
        assert payload["kernel"] == ("sde" if algorithm == "code" else "pipeline")
        assert answer[0].count('class="tt-best"') == 1
        assert answer[0].count("<figcaption>2. seed ") == 1
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        exec(answer[4], {})
        seed, reward = capsys.readouterr().out.split()[-2:]
        assert int(seed) == payload["seed"]
        assert float(reward) == pytest.approx(payload["search"]["reward"], abs=1e-4)
        assert (tmp_path / "best.png").exists()
        with Image.open(files[f"01-seed{seed}.png"]) as picture:
            assert "Steps: 10" in picture.info["parameters"]


def test_the_documented_call_of_the_api_runs(server: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert "http://127.0.0.1:7860" in code
    exec(code.replace("http://127.0.0.1:7860", server[0]), {})
    spent, name, command = capsys.readouterr().out.strip().splitlines()
    assert 0 < int(spent.split()[0]) <= 120
    assert name.startswith("01-seed")
    assert command.startswith("ttsnap generate 'a green circle and three red squares' --algorithm seed-pruning")


def test_compare_gives_both_at_the_same_budget(client: Any) -> None:
    answer = ask(client, "/compare", algorithm="ttsnap", budget="80nfe")
    names = [Path(name).name for name in answer[3]]
    assert names.count("trace.json") == 2
    traces = [json.loads(Path(n).read_text()) for n in answer[3] if n.endswith("trace.json")]
    assert [t["settings"]["algorithm"] for t in traces] == ["best-of-n", "ttsnap"]
    assert {t["settings"]["budget"] for t in traces} == {"80nfe"}
    assert [len(re.findall(rf'tt-end tt-\w+ tt-c{i}"', answer[0])) for i in range(2)] == [1, 1]
    with pytest.raises(Exception, match="choose another"):
        ask(client, "/compare", algorithm="best-of-n")


def test_eight_visitors_at_once_get_their_own(server: tuple[str, Path], tmp_path: Path) -> None:
    prompts = sample_prompts(8, 5)

    def visit(i: int) -> tuple[dict[str, Any], str, dict[str, Any]]:
        client = connect(server[0], tmp_path / str(i))
        answer = ask(client, prompt=prompts[i], seed=1000 * i, budget="40nfe", steps=8)
        files = files_of(answer)
        client.close()
        return winner_of(files), answer[0], json.loads(files["trace.json"].read_text())

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(visit, range(8)))
    for i, (payload, stage, trace) in enumerate(found):
        assert payload["prompt"] == prompts[i]
        assert trace["results"][0]["prompt"] == prompts[i]
        assert 1000 * i <= payload["seed"] < 1000 * i + 50
        assert trace["results"][0]["images"][0]["seed"] == payload["seed"]
        assert f"seed {payload['seed']}" in stage
        assert prompts[i] in stage
    assert [p.name for p in server[1].iterdir()] == ["cache"]  # folders of runs are gone


def test_stop_keeps_an_image(client: Any) -> None:
    job = client.submit(*{**FIELDS, "budget": "1600nfe", "steps": 20}.values(), api_name="/search")
    while not any("tt-grid" in str(out[0]) for out in job.outputs()):
        time.sleep(0.05)
    client.predict(api_name="/stop")
    answer = job.result(timeout=30)
    assert "stopped" in answer[1]
    trace = json.loads(files_of(answer)["trace.json"].read_text())["results"][0]
    assert len(trace["images"]) == 1
    assert answer[4].startswith("# The search on the page was stopped early")
    assert trace["spent"]["nfe"] < 1500


HOSTILE: list[dict[str, Any]] = [
    *({"prompt": p} for p in ("<img src=x onerror=alert(1)>", "a red\0circle", "🦊", "a" * 100_000, "a red circle, a")),
    *({"budget": b} for b in ("-5nfe", "5nfe", "1e400", "9999nfe", [1])),
    *({"steps": s} for s in (-1, 10**9, "x")),
    *({"seed": s} for s in (-1, 10**30)),
    *({"size": s} for s in (10**6, 40)),
    {"keep": 10**6},
    {"rewards": ["os:system"]},
    {"rewards": None},
    {"algorithm": "/etc/passwd.json"},
]


def test_hostile_searches_are_refused_and_the_server_lives(client: Any) -> None:
    for changes in HOSTILE:
        with pytest.raises(Exception, match=r"\w{3}") as caught:
            ask(client, **changes)
        assert "<img" not in str(caught.value), changes
    assert ask(client, prompt="a red circle", budget="10nfe", steps=5)[3]


def test_a_visitor_cannot_name_a_model(client: Any, server: tuple[str, Path]) -> None:
    config = httpx.get(f"{server[0]}config").json()
    assert config["analytics_enabled"] is False
    public = [d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"]
    assert sorted(public) == ["compare", "search", "stop"]


def post(address: str, api: str, data: list[Any]) -> str:
    """The events that the server sends for a call of a function by name, as text."""
    begun = httpx.post(f"{address}gradio_api/call/{api}", json={"data": data}, timeout=30)
    if begun.status_code != 200:
        return f"{begun.status_code} {begun.text}"
    return httpx.get(f"{address}gradio_api/call/{api}/{begun.json()['event_id']}", timeout=30).text


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "http://example.com",
        "https%3A//example.com",
        ".",
    ],
)
def test_no_file_outside_is_served(server: tuple[str, Path], path: str) -> None:
    answer = httpx.get(f"{server[0]}gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text
    answer = httpx.get(f"{server[0]}gradio_api/file={Path(__file__)}")
    assert answer.status_code == 403


@pytest.mark.parametrize("api", ["search", "compare"])
def test_the_queue_cannot_be_skipped(server: tuple[str, Path], api: str) -> None:
    answer = httpx.post(f"{server[0]}gradio_api/run/{api}", json={"data": list(FIELDS.values())})
    assert answer.status_code >= 400


def test_a_large_upload_is_refused(server: tuple[str, Path]) -> None:
    big = httpx.post(f"{server[0]}gradio_api/upload", files={"files": ("a.png", b" " * (9 * 2**20))})
    assert big.status_code == 413


def test_a_visitor_who_leaves_stops_the_search(server: tuple[str, Path], tmp_path: Path) -> None:
    """The iterator is closed, the thread ends, and the next visitor is served."""
    models = Models(load)
    fields = {**FIELDS, "budget": "1600nfe", "steps": 20}
    asked = read(fields, ServingCatalog("embedded", ("scenes",), recommended), DemoLimits())
    stop = threading.Event()
    frames = stream(asked, models, DemoLimits(), stop, tmp_path)
    while "tt-grid" not in next(frames).stage:
        pass
    frames.close()
    assert stop.is_set()
    end = time.monotonic() + 20
    while models.lock.locked() and time.monotonic() < end:
        time.sleep(0.05)
    assert not models.lock.locked()
    begin = time.monotonic()
    told = list(stream(asked, models, DemoLimits(seconds=0.9), threading.Event(), tmp_path))
    assert 3 <= len(told) <= 3 + (time.monotonic() - begin) / PERIOD  # throttled
    assert "0.9 seconds" in told[-1].status
    assert told[-1].files


def known(**changes: Any) -> tuple[Any, Models]:
    """What was asked for, and a server's models with a judge to whom every second image is right."""
    verdicts = itertools.cycle((True, False))
    models = Models(load, lambda prompt, name: lambda image: next(verdicts))
    offer = ServingCatalog("embedded", ("scenes", "brightness"), recommended)
    return read({**FIELDS, **changes}, offer, DemoLimits()), models


def test_both_searches_of_a_comparison_are_there_at_once_and_spend_alike(tmp_path: Path) -> None:
    asked, models = known(budget="40nfe", steps=5, rewards=["brightness"])
    frames = list(stream(asked, models, DemoLimits(), threading.Event(), tmp_path, compare=True))
    stages = [frame.stage for frame in frames if "tt-two" in frame.stage]
    assert len(stages) == len(frames) - 1, "all but the one that waits for the device"
    for stage in stages:
        assert stage.count('class="tt-best') - stage.count('class="tt-bests') == 2
        base, chosen = map(int, re.findall(r"([\d,]+) of 40 evaluations", stage))
        assert abs(base - chosen) <= 4 or chosen == 40 or stage is stages[-1], "two batches of two"
        assert not re.search(r"\d s<", stage), "one clock"
    seconds = [json.loads(path.read_text())["results"][0]["spent"]["seconds"] for path in tmp_path.glob("*/trace.json")]
    assert len(seconds) == 2
    assert all(0 < each < 60 for each in seconds)
    asked, models = known(budget="5s")
    with pytest.raises(ValueError, match="equal evaluations"):
        next(stream(asked, models, DemoLimits(), threading.Event(), tmp_path, compare=True))


def test_a_comparison_that_is_stopped_gives_both_images(tmp_path: Path) -> None:
    asked, models = known(budget="1600nfe", steps=20)
    stop = threading.Event()
    frames = stream(asked, models, DemoLimits(), stop, tmp_path, compare=True)
    while "tt-grid" not in next(frames).stage:
        pass
    stop.set()
    last = list(frames)[-1]
    assert len([path for path in last.files if path.name.startswith("01-seed")]) == 2
    assert not models.lock.locked()


def test_other_seeds_are_tallied(tmp_path: Path) -> None:
    asked, models = known(budget="15nfe", steps=5, rewards=["brightness"])
    pages = list(tally(asked, [7, 70, 700], models, DemoLimits(), threading.Event()))
    assert pages[-1][1] == "done: 3 of 3 other seeds"
    counts = [int(n) for n in re.findall(r"<b class=\"tt-p-\w+\">(\d+)</b>", pages[-1][0])]
    assert sum(counts) == 3
    assert "Best-of-N <b>3</b> of 3" in pages[-1][0], "the judge sees best-of-N's image first"
    assert [f"from {first}" in pages[-1][0] for first in (7, 70, 700)] == [True] * 3
    stop = threading.Event()
    pages_ = tally(asked, range(20), models, DemoLimits(), stop)
    next(pages_), next(pages_)
    stop.set()
    assert "stopped: " in list(pages_)[-1][1]
    assert not models.lock.locked()
    late = list(tally(asked, range(20), models, DemoLimits(seconds=0.01), threading.Event()))
    assert "the most that this demo allows" in late[-1][1]
    with pytest.raises(ValueError, match="choose another"):
        next(tally(known(algorithm="best-of-n")[0], [1], models, DemoLimits(), threading.Event()))


def test_wishes_by_hand_are_carried_out_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, models = known(budget="60nfe", steps=10, rewards=["brightness"])
    wishes: list[UserCommand] = []
    spend, wished = Turns.spend, threading.Event()

    def spend_and_wait(turns: Turns, place: int, nfe: int) -> None:
        spend(turns, place, nfe)
        if turns._spent[place] > 20:  # the board is there; a fast search would end before the visitor's wishes
            assert wished.wait(60)

    monkeypatch.setattr(Turns, "spend", spend_and_wait)
    for frame in stream(asked, models, DemoLimits(), threading.Event(), tmp_path, wishes=wishes):
        if "tt-grid" in frame.stage and not wishes:
            wishes += [read_wish("drop", 3, None, DemoLimits()), read_wish("best", None, 2, DemoLimits())]
            wished.set()
    trace = json.loads((tmp_path / "trace.json").read_text())
    noted = trace["settings"]["by_hand"]
    assert [verb for _, verb, *_ in noted["taken"]][-1] == "best"
    assert "by hand" in frame.stage
    assert "led by hand" in frame.python
    assert frame.files
    assert trace["results"][0]["spent"]["nfe"] <= 60


@pytest.mark.parametrize("number", [None, "", "x", "3", "12 ↳", -1, ["3"], 10**30, True, {"a": 1}, 0.5])
def test_bad_wishes_are_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="candidate must be"):
        read_wish("drop", number, None, DemoLimits())
    with pytest.raises(ValueError, match="images to finish"):
        read_wish("best", None, number, DemoLimits())
    with pytest.raises(ValueError, match="wish"):
        read_wish(number, 3, 3, DemoLimits())


def test_a_click_on_the_board_is_a_wish_and_anything_else_a_refusal(tmp_path: Path) -> None:
    handlers = Handlers(ServingCatalog("embedded", ("scenes",), recommended), DemoLimits(), known()[1], tmp_path)
    request: Any = SimpleNamespace(session_hash="a")
    wishes: list[UserCommand] = []
    handlers.running["a"] = Running(wishes)
    for asked in ({"verb": "drop", "uid": 12}, {"verb": "finish", "uid": 40}):
        handlers.lead(request, gr.EventData(None, asked))
    handlers.best(request, 3)
    assert wishes == [UserCommand("drop", 12), UserCommand("finish", 40), UserCommand("best", number=3)]
    for asked in (None, [], "drop", {}, {"verb": "drop"}, {"verb": "best", "uid": 3}, {"verb": ["drop"], "uid": 3}):
        with pytest.raises(gr.Error):
            handlers.lead(request, gr.EventData(None, asked))
    assert len(wishes) == 3


def picture(side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(out, "PNG")
    return out.getvalue()


def test_a_picture_is_changed_and_shown_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    asked, models = known(prompt="a blue circle", picture=picture(), strength=0.5, steps=4, budget="12nfe")
    assert asked.engine.sampler.draft is None
    assert "negative_prompt" not in asked.engine.call, "which FLUX does not take; Stable Diffusion 3 fills it in"
    monkeypatch.setattr("ttsnap.demo.stream.PERIOD", 0)  # a frame for each event, however fast the search is
    frames = list(stream(asked, models, DemoLimits(), threading.Event(), tmp_path))
    assert frames[1].stage.count("tt-wipe") == 1
    assert "tt-after" not in frames[1].stage
    last = frames[-1]
    assert "tt-after" in last.stage
    assert "--task image-to-image --image picture.png --strength 0.5" in last.command
    payload = read_record(last.files[0]).to_json()
    assert (payload["task"], payload["call"]["strength"]) == ("image-to-image", 0.5)
    assert payload["dtype"] == "float32"
    assert payload["pictures"] == {"image": Picture(picture()).digest}
    monkeypatch.chdir(tmp_path)
    Path("picture.png").write_bytes(picture())
    capsys.readouterr()
    exec(last.python, {})
    assert capsys.readouterr().out.split()[-2] == str(payload["seed"])


@pytest.mark.parametrize("make", [*list(bombs.PICTURES.values())[7:], bombs.STILLS["png"], bombs.STILLS["gif"]])
def test_what_is_no_picture_or_too_large_is_refused_before_it_is_decoded(make: Callable[[], bytes]) -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"\w{3}") as caught:
        known(picture=make())
    assert len(str(caught.value)) < 600
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("strength", [0, -1, 1.1, float("nan"), None, "0.5", True, [1]])
def test_a_strength_out_of_range_is_refused(strength: Any) -> None:
    with pytest.raises(ValueError, match="strength must be"):
        known(picture=picture(), strength=strength)


def test_a_picture_of_another_visitor_or_of_the_machine_is_refused(server: tuple[str, Path]) -> None:
    """Only files in the server's own cache are read, whatever the page is told the picture is."""
    for path in ("/etc/passwd", str(Path(__file__)), str(server[1]), "http://127.0.0.1:9/x.png", "\0", "a" * 5000):
        answer = post(server[0], "search", [*{**FIELDS, "budget": "20nfe", "picture": {"path": path}}.values()])
        assert "error" in answer
        assert "root:" not in answer


def test_a_full_queue_refuses_and_serves_on(server: tuple[str, Path]) -> None:
    """Twice as many calls as may wait: some are refused with a sentence, nothing is lost for those that listen."""
    address = server[0]

    def begin(i: int) -> httpx.Response:
        values = [*{**FIELDS, "budget": "10nfe", "steps": 5, "seed": i}.values()]
        return httpx.post(f"{address}gradio_api/call/search", json={"data": values}, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(begin, range(48)))
    assert {answer.status_code for answer in begun} <= {200, 503}
    taken = [answer.json()["event_id"] for answer in begun if answer.status_code == 200]
    assert 1 <= len(taken) < 48
    last = httpx.get(f"{address}gradio_api/call/search/{taken[0]}", timeout=60).text
    assert "complete" in last
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = begin(99)
        if answer.status_code == 200:
            told = httpx.get(f"{address}gradio_api/call/search/{answer.json()['event_id']}", timeout=60).text
            assert "01-seed" in told
            return
        time.sleep(1)
    raise AssertionError("the queue never emptied")
