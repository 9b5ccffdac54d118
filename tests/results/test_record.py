"""Pictures from strangers: what of their metadata is taken, and that nothing of it is run or loaded unasked."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from ttsnap.cli import main, replay
from ttsnap.core.prompt import Prompt
from ttsnap.options.call import CALL
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import FAMILIES
from ttsnap.request.request import SearchRequest
from ttsnap.results.record import read_record

PLAIN: dict[str, Any] = {
    "ttsnap": "0.1.0", "model": "embedded", "sampler": "FlowMatchEulerDiscreteScheduler", "kernel": "pipeline",
    "call": {"num_inference_steps": 4, "guidance_scale": 4.5}, "prompt": "a red circle", "seed": 7, "branched": False,
    "search": {"algorithm": "best-of-n", "options": {}, "budget": "8nfe", "rank": 1, "reward": 0.5,
               "scores": {"scenes": 0.5}, "metrics": {}, "nfe": 8, "seeds": 2},
}  # fmt: skip


def forged(folder: Path, change: Any = None, **values: Any) -> Path:
    """A PNG whose metadata is that of PLAIN, with changes: keys such as call__report, or a text in its place."""
    found: Any = copy.deepcopy(PLAIN)
    for name, value in values.items():
        inner, _, key = name.rpartition("__")
        (found[inner] if inner else found)[key] = value
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", change if isinstance(change, str) else json.dumps(found))
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(folder / "theirs.png", pnginfo=info)
    return folder / "theirs.png"


REFUSED: list[dict[str, Any]] = [
    {"search__place": 10**9},
    {"call__report": "evil.py:score"}, {"call__reward": "http://host"}, {"call__search": "evil.json"},
    {"call__callback_on_step_end": "x"}, {"call__generator": 1}, {"call__on_event": 1, "call__should_stop": 1},
    {"report": "evil.py:score"}, {"search__reward_file": "x"}, {"call__num_inference_steps": 10**7},
    {"call__num_inference_steps": 2.5}, {"call__num_inference_steps": True}, {"call__height": 10**6},
    {"call__guidance_scale": "4"}, {"call__sigmas": [1.0, [0.5]]}, {"call__sigmas": [0.5] * 1001},
    {"call__negative_prompt": "x" * 10001}, {"pictures": {"size": "a" * 64}}, {"pictures": {"image": "a" * 63}},
    {"pictures": {"image": []}}, {"call__negative_prompt": {"a": 1}},
    {"call__joint_attention_kwargs": {"ip_adapter_masks": 1}}, {"prompt": "x" * 10001}, {"prompt": None}, {"seed": -1},
    {"seed": "7"}, {"model": ["x"]}, {"model": "a\x1b[2J"}, {"noises": "orthogonal"}, {"path": "polynomial"},
    {"kernel": "sde:tan:1"}, {"noises": ["a"]}, {"kernel": 3}, {"search__reward": "high"}, {"call": [1]},
]  # fmt: skip


@pytest.mark.parametrize("values", REFUSED, ids=lambda values: str(values)[:40])
def test_what_a_picture_may_not_say_is_refused_by_name(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"theirs\.png") as caught:
        read_record(forged(tmp_path, **values))
    for name, value in values.items():
        assert any(part in str(caught.value) for part in (name.rpartition("__")[2], *str(value).split(":")))


def test_what_ttsnap_writes_is_read(tmp_path: Path) -> None:
    assert read_record(forged(tmp_path)).to_json() == {**PLAIN, "times": "pipeline"}
    more = {"call__height": 512, "call__sigmas": [1.0, 0.5], "call__prompt_2": None, "lora": "a/b:0.5"}
    assert read_record(forged(tmp_path, **more)).call["sigmas"] == [1.0, 0.5]
    pictures = {"image": ["a" * 64, "b" * 64], "mask_image": "0" * 64}
    assert read_record(forged(tmp_path, pictures=pictures)).pictures == pictures


@pytest.mark.parametrize("family", FAMILIES)
def test_every_plain_argument_of_every_family_is_known(family: str) -> None:
    import pkgutil

    takes = pkgutil.resolve_name(FAMILIES[family]).denoiser_class.honours.split()
    tensors = {n for n in takes if "embeds" in n or n.endswith("attention_mask")}
    assert set(takes) - tensors <= set(CALL)


class Pipe:
    """Stands for a loaded pipeline: takes the call's arguments that the embedded model's family takes."""

    def __init__(self) -> None:
        self.requests: list[SearchRequest] = []

    def call_arguments(self) -> set[str]:
        from ttsnap.pipelines.families.stable_diffusion_3 import SearchStableDiffusion3Pipeline

        return set(SearchStableDiffusion3Pipeline.denoiser_class.honours.split())


def found(request: SearchRequest, pipe: Pipe) -> Any:
    """Stands for the search."""
    pipe.requests.append(request)
    return SimpleNamespace(results=[SimpleNamespace(best=SimpleNamespace(pixels=torch.zeros(3, 32, 32)))])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...], Pipe]]:
    """What `ttsnap replay` loaded: model, LoRA and pipeline."""
    models: list[tuple[str, tuple[str, ...], Pipe]] = []

    def load(model: str, device: str, dtype: str, *, loras: tuple[str, ...], task: str) -> Pipe:
        models.append((model, loras, Pipe()))
        return models[-1][2]

    monkeypatch.setattr(replay, "load_model", load)
    monkeypatch.setattr("ttsnap.pipelines.run.run", found)
    return models


def test_nothing_is_loaded_because_a_picture_names_it(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(forged(tmp_path, model="someone/their model", lora="someone/lora:2"))
    both = "asks for the model 'someone/their model' and LoRA 'someone/lora:2'"
    assert main(["replay", path]) == 2
    error = capsys.readouterr().err
    assert both in error
    assert "add --model 'someone/their model' --lora someone/lora:2, name others, or add --trust" in error
    assert main(["replay", path, "--model", "someone/mine"]) == 2
    assert "asks for the LoRA 'someone/lora:2'" in capsys.readouterr().err
    assert main(["replay", path, "--lora", "mine"]) == 2
    assert "asks for the model 'someone/their model';" in capsys.readouterr().err
    assert not loaded
    assert main(["replay", path, "--model", "someone/mine", "--lora", "too"]) == 0
    assert main(["replay", path, "--trust", "--overwrite"]) == 0
    assert [(model, loras) for model, loras, _ in loaded] == [
        ("someone/mine", ("too",)), ("someone/their model", ("someone/lora:2",))]  # fmt: skip


def test_several_loras_are_given_one_by_one(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(forged(tmp_path, lora=["ink:0.6", "fog"]))
    assert main(["replay", path]) == 2
    assert "add --lora ink:0.6 --lora fog, name others, or add --trust" in capsys.readouterr().err
    assert main(["replay", path, "--lora", "ink:0.6"]) == 2
    assert "made under 2 LoRAs together, ink:0.6, fog; give --lora for each" in capsys.readouterr().err
    assert main(["replay", path, "--lora", "f/fog", "--lora=f/ink:0.6"]) == 0
    assert main(["replay", path, "--trust", "--overwrite"]) == 0
    assert [loras for _, loras, _ in loaded] == [("f/fog", "f/ink:0.6"), ("ink:0.6", "fog")]
    assert 'ttsnap LoRA: "ink:0.6, fog"' in Image.open(tmp_path / "replays" / "theirs.png").info["parameters"]


def test_a_replay_needs_no_drafter_which_only_helped_to_choose_the_seed(loaded: list[Any], tmp_path: Path) -> None:
    path = str(forged(tmp_path, draft="someone/draft:2", noises="independent", estimate_guidance=2.0, search__nfe=95.5))
    assert main(["replay", path]) == 0
    ((_, _, pipe),) = loaded
    assert pipe.requests[0].engine.sampler.draft is None
    assert read_record(tmp_path / "replays" / "theirs.png").sampler.draft == "someone/draft:2"


@pytest.mark.parametrize(
    ("algorithm", "advice"),
    [("svdd", "run `ttsnap generate` with the settings in its trace.json"),
     ("spectral-evolution", "ttsnap 0.1.0 was the last version with evolution in the low frequencies")],
)  # fmt: skip
def test_an_image_from_a_branch_is_made_again_by_its_search_unless_that_was_removed(
    algorithm: str, advice: str, loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(forged(tmp_path, branched=True, search__algorithm=algorithm))
    assert main(["replay", path]) == 2
    assert re.search(f"the seed alone does not make it again; {advice}", capsys.readouterr().err)
    assert not loaded


def test_a_branch_of_a_search_that_shared_its_budget_is_not_said_to_be_found_by_that_budget(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(forged(tmp_path, branched=True, search__algorithm="svdd", search__shared=True))
    assert main(["replay", path]) == 2
    assert "shared a budget with others, and only all of them together find it again" in capsys.readouterr().err
    path = str(forged(tmp_path, search__shared=True))
    assert main(["replay", path]) == 0, "its seed makes it"


def test_a_replay_is_found_by_no_pattern_that_found_the_image(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [forged(tmp_path / name, lora=lora) for name, lora in (("a", "x:1"), ("b", "x:1"), ("c", "y:1"))]
    argv = [str(path) for path in paths]
    assert main(["replay", *argv, "--trust"]) == 0
    assert [loras for _, loras, _ in loaded] == [("x:1",), ("y:1",)], (
        "a model is loaded once for files that follow each other"
    )
    assert capsys.readouterr().out.count("wrote") == 3
    assert sorted(tmp_path.glob("*/*.png")) == paths
    assert sorted(tmp_path.glob("*/replays/*.png")) == [path.parent / "replays" / path.name for path in paths]
    assert main(["replay", *argv, "--trust", "--out", str(tmp_path / "all")]) == 2
    assert "several of the files are named theirs.png" in capsys.readouterr().err
    assert main(["replay", argv[0], "--trust", "--out", str(tmp_path / "one.png")]) == 0
    assert main(["replay", argv[0], "--trust", "--out", str(tmp_path)]) == 0
    assert main(["replay", argv[0], "--trust"]) == 2
    assert "exists" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.png")} == {"one.png", "theirs.png"}


def test_of_several_files_all_are_looked_at_before_a_model_is_loaded(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = forged(tmp_path)
    (tmp_path / "other.png").write_bytes(path.read_bytes()[:-20])
    assert main(["replay", str(path), str(tmp_path / "other.png")]) == 2
    assert "other.png" in capsys.readouterr().err
    assert not loaded
    assert not (tmp_path / "replays").exists()


def test_arguments_of_another_family_are_refused(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(forged(tmp_path, call__true_cfg_scale=2.0))]) == 2
    assert "unknown argument(s) ['true_cfg_scale'] for this pipeline" in capsys.readouterr().err
    assert not loaded[0][2].requests


def test_only_plain_arguments_reach_the_pipeline(loaded: list[Any], tmp_path: Path) -> None:
    assert main(["replay", str(forged(tmp_path))]) == 0
    (request,) = loaded[0][2].requests
    assert request.engine.call == PLAIN["call"]
    assert (request.prompts, request.seed) == ((Prompt("a red circle"),), 7)
    assert request.engine.sampler == SamplerOptions(draft=None)


def test_a_picture_that_says_it_is_huge_is_not_decoded(
    loaded: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = forged(tmp_path)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ttsnap", json.dumps(PLAIN))
    Image.new("1", (4097, 4097)).save(path, pnginfo=info)
    assert main(["replay", str(path)]) == 2
    assert "4097 x 4097 are more than 16,777,216 pixels" in capsys.readouterr().err
    assert not loaded
