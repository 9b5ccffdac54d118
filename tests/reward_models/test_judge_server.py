"""A judge before a real server, `transformers serve` with a tiny random vision-language model."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ttsnap.reward_models.judge import Judge, JudgeOptions

from .published import write_vlm

pytestmark = pytest.mark.slow
pytest.importorskip("fastapi")
START = "import sys; from transformers.cli.transformers import main; sys.argv = ['transformers', *sys.argv[1:]]; main()"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model of the server."""
    folder = write_vlm(tmp_path_factory.mktemp("vlm"), "edit_score")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", START, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "log")
            yield f"http://127.0.0.1:{port}/v1", str(folder)
        finally:
            process.terminate()
            process.wait(20)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port)).close()
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.parametrize(
    ("kind", "message"), [("yes", "there are no logprobs in it"), ("rubric", "gave an answer that cannot be used")]
)
def test_images_arrive_and_what_the_server_lacks_is_told(served: tuple[str, str], kind: str, message: str) -> None:
    """transformers serve reads the image and counts tokens, but tells no logprobs and holds to no schema."""
    url, model = served
    judge = Judge(kind, JudgeOptions(model, url, cache="none", answer_tokens=4, retries=0, timeout=120))
    with pytest.raises(RuntimeError, match=message):
        judge(torch.rand(1, 3, 16, 16), ["a red circle"])
    assert judge.usage.answered == 1
    assert judge.usage.question_tokens > 4  # those of the image among them
    assert list(judge.tokens_taken) == [judge.usage.question_tokens + judge.usage.answer_tokens]
