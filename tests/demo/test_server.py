"""The running server: strangers, many visitors at once, stopping, and files that come from the
visitor's own search."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import gradio as gr
import httpx
import pytest
from PIL import Image

from ttsnap.cli import main
from ttsnap.demo.form import DemoLimits, read
from ttsnap.demo.handlers import Handlers, _shown
from ttsnap.demo.live import PERIOD, Frame, Turns, stream
from ttsnap.demo.panels import Hand
from ttsnap.demo.worker import Models
from ttsnap.files.pictured import Picture
from ttsnap.pipelines import load, recommended
from ttsnap.request.offer import ServingCatalog
from ttsnap.results.record import read_record
from ttsnap.scenes import sample_prompts

from .conftest import FIELDS, PROMPT, QUEUE

gradio_client = pytest.importorskip("gradio_client")
pytestmark = pytest.mark.usefixtures("shallow_model")


@pytest.fixture(autouse=True)
def _temporary(tmp_path_factory, monkeypatch):
    """The client leaves a folder in the system's temporary one for every file that it gets."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))


def connect(address, folder):
    return gradio_client.Client(
        address, verbose=False, download_files=folder, analytics_enabled=False
    )


def ask(client, api="/search", **changes):
    return client.predict(*{**FIELDS, **changes}.values(), api_name=api)


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    found = connect(server[0], tmp_path_factory.mktemp("client"))
    yield found
    found.close()


def files_of(answer):
    return {Path(name).name: Path(name) for name in answer[3]}


def winner_of(files):
    return read_record(
        next(path for name, path in files.items() if name.startswith("01-seed"))
    ).to_json()


def test_the_snippet_finds_the_same_winner(client, capsys, tmp_path, monkeypatch):
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


def test_the_documented_call_of_the_api_runs(server, capsys):
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert "http://127.0.0.1:7860" in code
    exec(code.replace("http://127.0.0.1:7860", server[0]), {})
    name, command = capsys.readouterr().out.strip().splitlines()
    assert Path(name).name.startswith("01-seed")
    assert command.startswith(
        "ttsnap generate 'a green circle and three red squares' --algorithm seed-pruning"
    )


def test_eight_visitors_at_once_get_their_own(server, tmp_path):
    prompts = sample_prompts(8, 5)

    def visit(i):
        client = connect(server[0], tmp_path / str(i))
        answer = ask(client, prompt=prompts[i], seed=1000 * i, budget="40nfe", steps=8)
        files = files_of(answer)
        client.close()
        payload, [result] = winner_of(files), json.loads(files["trace.json"].read_text())["results"]
        assert payload["prompt"] == result["prompt"] == prompts[i]
        assert 1000 * i <= payload["seed"] == result["images"][0]["seed"] < 1000 * i + 50
        assert f"seed {payload['seed']}" in answer[0]
        assert prompts[i] in answer[0]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(8)))
    assert [p.name for p in server[1].iterdir()] == ["cache"]  # folders of runs are gone


def test_stop_keeps_an_image(client):
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


HOSTILE = [
    *({"prompt": p} for p in ("<img src=x onerror=alert(1)>", "a red\0circle", "a" * 100_000)),
    *({"budget": b} for b in ("9999nfe", [1])),
    *(
        {"seed": 10**30},
        {"size": 10**6},
        {"rewards": ["os:system"]},
        {"algorithm": "/etc/passwd.json"},
    ),
]


def test_hostile_searches_are_refused_and_the_server_lives(client):
    for changes in HOSTILE:
        with pytest.raises(Exception, match=r"\w{3}") as caught:
            ask(client, **changes)
        assert "<img" not in str(caught.value), changes
    files = ask(client, "/compare", prompt="a red circle", budget="10nfe", steps=5)[3]
    assert [Path(name).name for name in files].count("trace.json") == 2


def test_strangers_get_no_files_skip_no_queue_and_upload_nothing_large(
    server,
):
    address = server[0]
    config = httpx.get(f"{address}config").json()
    assert config["analytics_enabled"] is False
    public = [d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"]
    assert sorted(public) == ["compare", "search", "stop"]
    for path in (
        "/etc/passwd",
        "../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "http://example.com",
        "https%3A//example.com",
        ".",
        str(Path(__file__)),
    ):
        answer = httpx.get(f"{address}gradio_api/file={path}")
        assert answer.status_code in (403, 404)
        assert "root:" not in answer.text
    for api in ("search", "compare"):
        answer = httpx.post(f"{address}gradio_api/run/{api}", json={"data": list(FIELDS.values())})
        assert answer.status_code >= 400
    big = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", b" " * (9 * 2**20))})
    assert big.status_code == 413


def test_a_picture_of_another_visitor_or_of_the_machine_is_refused(
    server,
):
    """Only files in the server's own cache are read, whatever the page is told the picture is."""
    calls = f"{server[0]}gradio_api/call/search"
    mark = Path(__file__).parents[2] / "docs" / "demo.png"
    for path in (
        "/etc/passwd",
        str(mark),
        str(Path(__file__)),
        str(server[1]),
        "http://127.0.0.1:9/x.png",
        "\0",
        "a" * 5000,
    ):
        of_gradio = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for given in ({"path": path}, of_gradio, {**of_gradio, "path": None, "url": path}):
            values = [*{**FIELDS, "budget": "20nfe", "picture": given}.values()]
            answer = httpx.post(calls, json={"data": values}, timeout=30)
            if answer.status_code == 200:
                answer = httpx.get(f"{calls}/{answer.json()['event_id']}", timeout=30)
            assert "error" in answer.text
            assert "root:" not in answer.text


def test_our_own_checks_read_every_field_and_name_it(client, tmp_path, server):
    (tmp_path / "notes.png").write_text("no picture")
    text = gradio_client.handle_file(tmp_path / "notes.png")
    for name, value in (("picture", text), ("guidance", -1), ("steps", 1000), ("algorithm", "x")):
        with pytest.raises(gradio_client.exceptions.AppError, match=name) as caught:
            ask(client, **{name: value})
        assert str(server[1]) not in str(caught.value)


def known(**changes):
    """What was asked for, and a server's models with a judge to whom every second image is
    right."""
    verdicts = itertools.cycle((True, False))
    models = Models(load, lambda prompt, name: lambda image: next(verdicts))
    offer = ServingCatalog("embedded", ("scenes", "brightness"), recommended)
    return read({**FIELDS, **changes}, offer, DemoLimits()), models


def test_a_visitor_who_leaves_stops_the_search(server, tmp_path):
    """The iterator is closed, the thread ends, and the next visitor is served."""
    (asked, models), hand = known(budget="1600nfe", steps=20), Hand()
    frames = stream(asked, models, DemoLimits(), hand, tmp_path)
    while "tt-grid" not in next(frames).stage:
        pass
    frames.close()
    assert hand.stop.is_set()
    end = time.monotonic() + 20
    while models.lock.locked() and time.monotonic() < end:
        time.sleep(0.05)
    assert not models.lock.locked()
    begin = time.monotonic()
    told = list(stream(asked, models, DemoLimits(seconds=0.9), Hand(), tmp_path))
    assert 3 <= len(told) <= 3 + (time.monotonic() - begin) / PERIOD  # throttled
    assert "0.9 seconds" in told[-1].status
    assert told[-1].files


def test_both_searches_of_a_comparison_are_there_at_once_and_spend_alike(tmp_path):
    asked, models = known(budget="40nfe", steps=5, rewards=["brightness"])
    frames = list(stream(asked, models, DemoLimits(), Hand(), tmp_path, compare=True))
    stages = [frame.stage for frame in frames if "tt-two" in frame.stage]
    assert len(stages) == len(frames) - 1, "all but the one that waits for the device"
    for stage in stages:
        assert stage.count('class="tt-best') - stage.count('class="tt-bests') == 2
        chosen, base = map(int, re.findall(r"([\d,]+) of 40 evaluations", stage))
        assert abs(base - chosen) <= 4 or chosen == 40 or stage is stages[-1], "two batches of two"
        assert not re.search(r"\d s<", stage), "one clock"
    traces = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/trace.json"))]
    assert [trace["settings"]["algorithm"] for trace in traces] == ["best-of-n", "seed-pruning"]
    assert all(0 < trace["results"][0]["spent"]["seconds"] < 60 for trace in traces)
    for changes, why in (
        ({"budget": "5s"}, "equal evaluations"),
        ({"algorithm": "best-of-n"}, "choose another"),
    ):
        with pytest.raises(ValueError, match=why):
            next(
                stream(
                    known(**changes)[0],
                    models,
                    DemoLimits(),
                    Hand(),
                    tmp_path,
                    compare=True,
                )
            )


def test_a_comparison_that_is_stopped_gives_both_images(tmp_path):
    asked, models = known(budget="1600nfe", steps=20)
    hand = Hand()
    frames = stream(asked, models, DemoLimits(), hand, tmp_path, compare=True)
    while "tt-grid" not in next(frames).stage:
        pass
    hand.stop.set()
    last = list(frames)[-1]
    assert len([path for path in last.files if path.name.startswith("01-seed")]) == 2
    assert not models.lock.locked()


def test_the_stop_button_works_while_a_search_runs(tmp_path):
    frames = Frame("", fresh=True), Frame(""), Frame("", files=(tmp_path,))
    assert [_shown(frame)[-1].get("interactive") for frame in frames] == [True, None, False]


def test_a_visitor_leads_a_search_which_notes_it_and_its_images_are_made_again(
    tmp_path, monkeypatch, capsys
):
    asked, models = known(budget="60nfe", steps=10, rewards=["brightness"], keep=4)
    hand, said = Hand(), threading.Event()
    spend = Turns.spend

    def spend_and_wait(turns, place, nfe):
        spend(turns, place, nfe)
        # the board is there; a fast search would end before the visitor's commands
        if turns._spent[place] > 20:
            assert said.wait(60)

    monkeypatch.setattr(Turns, "spend", spend_and_wait)
    for frame in stream(asked, models, DemoLimits(), hand, tmp_path):
        if "tt-grid" in frame.stage and not said.is_set():
            assert hand.led is not None
            hand.led.drop(3)
            hand.led.finish(1)
            said.set()
    trace = json.loads((tmp_path / "trace.json").read_text())
    noted = [move["by_hand"] for move in trace["results"][0]["moves"] if "by_hand" in move]
    assert noted == [{"drop": [3], "finish": [1]}]
    assert "by hand" in frame.stage
    assert "led by hand" in frame.python
    assert frame.files
    pictures = [path for path in frame.files if path.name[0] == "0"]
    assert [one["uid"] for one in trace["results"][0]["images"]].count(1) == 1
    for path in pictures:
        assert read_record(path).by_hand == noted[0]
        assert main(["replay", str(path)]) == 0
        assert "difference from" in (text := capsys.readouterr().out)
        assert ": 0 of 255" in text
    assert trace["results"][0]["spent"]["nfe"] <= 60


def test_a_click_on_the_board_is_a_command_and_anything_else_a_refusal(tmp_path):
    handlers = Handlers(
        ServingCatalog("embedded", ("scenes",), recommended), DemoLimits(), known()[1], tmp_path
    )
    request = SimpleNamespace(session_hash="a")
    led = MagicMock()
    handlers.running["a"] = Hand(led=led)
    for asked in ({"verb": "drop", "uid": 12}, {"verb": "finish", "uid": 40}):
        handlers.lead(request, gr.EventData(None, asked))
    wanted = [call.drop(12), call.finish(40)]
    assert led.mock_calls == wanted
    bad = (None, "", "x", "3", "12 ↳", -1, ["3"], 10**30, True, {"a": 1}, 0.5)
    clicks = (
        None,
        [],
        "drop",
        {},
        {"verb": "drop"},
        {"verb": "best", "uid": 3},
        {"verb": ["drop"], "uid": 3},
    )
    for asked in (
        *clicks,
        *({"verb": "drop", "uid": uid} for uid in bad),
        *({"verb": v, "uid": 3} for v in bad),
    ):
        with pytest.raises(gr.Error):
            handlers.lead(request, gr.EventData(None, asked))
    handlers.running["a"] = Hand()  # of a comparison
    with pytest.raises(gr.Error):
        handlers.lead(request, gr.EventData(None, {"verb": "drop", "uid": 1}))
    assert led.mock_calls == wanted


def test_a_picture_is_changed_and_shown_before_and_after(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "picture.png")
    picture = (tmp_path / "picture.png").read_bytes()
    asked, models = known(
        prompt="a blue circle", picture=picture, strength=0.5, steps=4, budget="12nfe"
    )
    assert asked.engine.sampler.draft is None
    assert "negative_prompt" not in asked.engine.call, (
        "which FLUX does not take; Stable Diffusion 3 fills it in"
    )
    # a frame for each event, however fast the search is
    monkeypatch.setattr("ttsnap.demo.live.PERIOD", 0)
    frames = list(stream(asked, models, DemoLimits(), Hand(), tmp_path))
    assert frames[1].stage.count("tt-wipe") == 1
    assert "tt-after" not in frames[1].stage
    last = frames[-1]
    assert "tt-after" in last.stage
    for words in ("--task image-to-image", "--image picture.png", "--strength 0.5"):
        assert words in last.command
    payload = read_record(last.files[0]).to_json()
    assert (payload["task"], payload["call"]["strength"]) == ("image-to-image", 0.5)
    assert payload["dtype"] == "float32"
    assert payload["pictures"] == {"image": Picture(picture).digest}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(last.python, {})
    assert capsys.readouterr().out.split()[-2] == str(payload["seed"])


def test_a_full_queue_refuses_and_serves_on(server):
    """More calls as may wait: some are refused with a sentence, nothing is lost for those
    that listen."""
    calls = f"{server[0]}gradio_api/call/search"

    def begin(i):
        values = [*{**FIELDS, "budget": "10nfe", "steps": 5, "seed": i}.values()]
        return httpx.post(calls, json={"data": values}, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(begin, range(3 * QUEUE)))
    assert {answer.status_code for answer in begun} <= {200, 503}
    taken = [answer.json()["event_id"] for answer in begun if answer.status_code == 200]
    assert 1 <= len(taken) < 3 * QUEUE
    for event in (taken[0], taken[-1]):
        assert "01-seed" in httpx.get(f"{calls}/{event}", timeout=60).text
