"""The service in replicas of Ray Serve."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import OpenAI

from tests.service.conftest import PROMPT, picture
from ttsnap.service.limits import ServiceLimits

ROOT = Path(__file__).parents[2]
OWN: dict[str, object] = {"seed": 3, "budget": "24nfe", "search": "best-of-n", "steps": 4}


def test_what_the_operator_says_is_checked_before_a_replica_starts(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    from ttsnap.service.deployment import app

    for wrong in ({"device": "cuda:1"}, {"min_replicas": 0}, {"reward": "clip"}, {"limits": {"nfe": 0}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            app(wrong)
    with pytest.raises(ValueError, match="needs --rewards"):
        app({"model": "some/model", "device": "cpu"})
    with pytest.raises(ValueError, match="file of keys"):
        app({"keys": str(tmp_path / "keys"), "device": "cpu"})


def test_serve_and_we_take_the_file_of_the_how_to() -> None:
    pytest.importorskip("ray.serve")
    from ray.serve.schema import ServeDeploySchema

    from ttsnap.service.deployment import ReplicaSettings

    text = (ROOT / "docs" / "howto" / "operate_service.md").read_text(encoding="utf-8")
    file = ServeDeploySchema.model_validate(yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0]))
    (application,) = file.applications
    assert application.import_path == "ttsnap.service.deployment:app"
    settings = ReplicaSettings.of(application.args)
    assert (settings.limits, settings.max_replicas) == (ServiceLimits(nfe=2000, side=1024), 8)


@pytest.mark.slow
def test_two_replicas_serve_openai_s_client(ray_session: None, client: OpenAI, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    from ray import serve

    from ttsnap.service.deployment import app

    (tmp_path / "keys").write_text(f"alice {'a' * 20}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        settings = {"device": "cpu", "min_replicas": "2", "max_replicas": "2", "keys": str(tmp_path / "keys")}
        serve.run(app(settings), name="images", route_prefix="/")
        url = f"http://127.0.0.1:{port}"
        alice = OpenAI(base_url=f"{url}/v1", api_key="a" * 20, max_retries=0, timeout=60)
        assert [model.id for model in alice.models.list()] == ["embedded"]
        alone = client.images.generate(prompt=PROMPT, extra_body=OWN).to_dict()

        def ask(_: int) -> dict[str, Any]:
            return alice.images.generate(prompt=PROMPT, extra_body=OWN).to_dict()

        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(ask, range(8)))
        assert {reply["data"][0]["seed"] for reply in replies} == {alone["data"][0]["seed"]}
        assert picture(replies[0]["data"][0]["b64_json"]).size == (32, 32)
        stream = alice.images.generate(
            prompt=PROMPT, stream=True, partial_images=1, extra_body={**OWN, "search": "seed-pruning"}
        )
        kinds = [event.type for event in stream]
        assert kinds == ["image_generation.partial_image", "image_generation.completed"]
        with pytest.raises(openai.BadRequestError, match="no search"):
            alice.images.generate(prompt=PROMPT, extra_body={"search": "tuned.json"})
        with pytest.raises(openai.AuthenticationError):
            OpenAI(base_url=f"{url}/v1", api_key="b" * 20, max_retries=0).models.list()
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        states = serve.status().applications["images"].deployments["Replica"].replica_states
        assert states == {"RUNNING": 2}
        served = {httpx.get(f"{url}/metrics").text for _ in range(20)}
        assert sum('ttsnap_requests_total{outcome="done"}' in text for text in served) >= 2, "both have served"
    finally:
        serve.shutdown()
