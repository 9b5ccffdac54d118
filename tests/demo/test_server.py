"""The running server: strangers, many visitors at once, stopping, and files that come from the visitor's own search."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from ttsnap.pipelines import defaults, load

from ttsnap.demo.asked import Limits, Offer, read
from ttsnap.demo.border import FORM, Border, uploaded
from ttsnap.demo.models import Models
from ttsnap.demo.stream import PERIOD, stream
from ttsnap.outputs import read_payload
from ttsnap.scenes import sample_prompts

from .conftest import FIELDS, PROMPT

gradio_client = pytest.importorskip("gradio_client")


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
    return read_payload(next(path for name, path in files.items() if name.startswith("01-seed")))


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


def test_compare_gives_both_at_the_same_budget(client: Any) -> None:
    answer = ask(client, "/compare", algorithm="ttsnap", budget="80nfe")
    names = [Path(name).name for name in answer[3]]
    assert names.count("trace.json") == 2
    traces = [json.loads(Path(n).read_text()) for n in answer[3] if n.endswith("trace.json")]
    assert [t["settings"]["algorithm"] for t in traces] == ["best-of-n", "ttsnap"]
    assert {t["settings"]["budget"] for t in traces} == {"80nfe"}
    assert {"tt-line0", "tt-line1"} <= {word for word in ("tt-line0", "tt-line1") if word in answer[0]}
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


OUTSIDE = ["/etc/passwd", "../../../../etc/passwd", "cache/../../secret", "http://127.0.0.1:1/x.json", "file:///etc/passwd",
           "", "\0", 5, None, ["/etc/passwd"], {"path": "/etc/passwd"}]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=repr)
def test_only_uploads_are_read(server: tuple[str, Path], path: Any) -> None:
    payload = {"path": path, "meta": {"_type": "gradio.FileData"}, "url": path, "orig_name": "trace.json"}
    for api, rest in (("draw_trace", [0, 1]), ("open_trace", []), ("read_picture", [])):
        answer = post(server[0], api, [payload, *rest])
        assert "root:" not in answer
        assert "error" in answer
    with pytest.raises(ValueError, match="not an uploaded file"):
        uploaded({"path": path}, server[1] / "cache")


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


CLOSED = [
    "process_recording",
    "vibe-edit",
    "run-history/records",
    "deep_link?session_hash=x",
    "component_server",
    "openapi",
]


@pytest.mark.parametrize("path", [*(f"gradio_api/{name}" for name in CLOSED), "monitoring/summary", "docs"])
def test_what_the_page_does_not_need_is_closed(server: tuple[str, Path], path: str) -> None:
    assert httpx.get(server[0] + path).status_code in (403, 404, 405)
    assert httpx.post(server[0] + path, json={}).status_code in (403, 404, 405)


@pytest.mark.parametrize("api", ["search", "compare", "draw_trace", "play_trace"])
def test_the_queue_cannot_be_skipped(server: tuple[str, Path], api: str) -> None:
    answer = httpx.post(f"{server[0]}gradio_api/run/{api}", json={"data": list(FIELDS.values())})
    assert answer.status_code >= 400


def test_large_bodies_are_refused(server: tuple[str, Path]) -> None:
    address = server[0]
    big = httpx.post(f"{address}gradio_api/upload", files={"files": ("trace.json", b" " * (9 * 2**20))})
    assert big.status_code == 413
    form = httpx.post(f"{address}gradio_api/queue/join", content=b"x" * (FORM + 1))
    assert form.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 65536

    with contextlib.suppress(httpx.TransportError):  # the server may hang up before everything is sent
        assert httpx.post(f"{address}gradio_api/queue/join", content=endless()).status_code == 413
    assert httpx.get(address).status_code == 200


def test_a_full_cache_takes_no_more(tmp_path: Path) -> None:
    said: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        said.append(scope["path"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 10, "more_body": False}

    async def send(message: Any) -> None:
        said.append(message.get("status", "body"))

    border = Border(app, tmp_path, 100)
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload"}
    asyncio.run(border(scope, receive, send))
    assert said == ["/gradio_api/upload"]
    (tmp_path / "full").write_bytes(b"x" * 101)
    asyncio.run(border(scope, receive, send))
    assert said[1:] == [507, "body"]


def test_uploaded_traces_are_drawn_and_bad_ones_refused(server: tuple[str, Path], written: Path) -> None:
    address = server[0]

    def upload(content: bytes, name: str) -> dict[str, Any]:
        [path] = httpx.post(f"{address}gradio_api/upload", files={"files": (name, content)}).json()
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    trace = upload((written / "trace.json").read_bytes(), "../../trace.json")
    assert Path(trace["path"]).is_relative_to(server[1] / "cache")
    assert "tt-grid" in post(address, "draw_trace", [trace, 0, 2])
    assert "whole number" in post(address, "draw_trace", [trace, 0, 10**9])
    assert "whole number" in post(address, "draw_trace", [trace, -1, 1])
    bad = upload(b'{"levels": [NaN], "results": [{}]}', "trace.json")
    assert "finite" in post(address, "open_trace", [bad])
    picture = upload(next(written.glob("01-*.png")).read_bytes(), "x.png")
    assert PROMPT in post(address, "read_picture", [picture])
    assert "cannot read" in post(address, "read_picture", [upload(b"\x89PNG\r\n\x1a\nnot one", "x.png")])


def test_a_visitor_who_leaves_stops_the_search(server: tuple[str, Path], tmp_path: Path) -> None:
    """The iterator is closed, the thread ends, and the next visitor is served."""
    models = Models(load, defaults, lambda prompt, name: prompt)
    fields = {**FIELDS, "budget": "1600nfe", "steps": 20}
    asked = read(fields, Offer("embedded", False, ("scenes",)), Limits(), defaults)
    stop = threading.Event()
    frames = stream(asked, models, Limits(), stop, tmp_path)
    while "tt-grid" not in next(frames).stage:
        pass
    frames.close()
    assert stop.is_set()
    end = time.monotonic() + 20
    while models.lock.locked() and time.monotonic() < end:
        time.sleep(0.05)
    assert not models.lock.locked()
    begin = time.monotonic()
    told = list(stream(asked, models, Limits(seconds=0.9), threading.Event(), tmp_path))
    assert 3 <= len(told) <= 3 + (time.monotonic() - begin) / PERIOD  # throttled
    assert "0.9 seconds" in told[-1].status
    assert told[-1].files
