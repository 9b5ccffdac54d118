"""What a call gives its text encoders beside the prompts."""

from __future__ import annotations

import pytest
import torch
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs


def test_texts_and_options_go_to_every_prompt() -> None:
    given = EncoderInputs({"prompt_2": "b", "negative_prompt": None}, {"prompt_embeds": None}, {"clip_skip": 1})
    arguments = {"prompt": ["x", "y"], "prompt_2": ["b", "b"], "negative_prompt": None, "prompt_embeds": None}
    assert given.checked == ""
    assert given.arguments(("x", "y")) == {**arguments, "clip_skip": 1}


def test_embeddings_stand_in_place_of_prompts_and_count_them() -> None:
    given = EncoderInputs({"negative_prompt": "n"}, {"prompt_embeds": torch.zeros(3, 2, 1)}, {})
    arguments = given.arguments(["only one"])
    assert given.checked is None
    assert arguments["prompt"] is None
    assert arguments["negative_prompt"] == ["n"] * 3
    assert arguments["prompt_embeds"].shape == (3, 2, 1)


def test_a_prompt_among_the_texts_stands_in_place_of_the_prompts() -> None:
    given = EncoderInputs({"prompt": "negative"}, {"prompt_embeds": None}, {})
    assert given.arguments(["", ""])["prompt"] == ["negative", "negative"]


def test_too_few_texts_or_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="1 texts for 2 prompts"):
        EncoderInputs({"prompt_2": ["b"]}, {"prompt_embeds": None}, {}).arguments(["x", "y"])
    with pytest.raises(ValueError, match="embeddings of 1 prompts for 2 prompts"):
        EncoderInputs({}, {"prompt_embeds": None, "negative": torch.zeros(1, 2, 1)}, {}).arguments(["x", "y"])


def test_texts_of_rewards_are_encoded_as_the_prompts_that_stand_behind_them() -> None:
    class Denoiser(PipelineDenoiser):
        def encode_prompts(self, prompts: object) -> None:
            self.seen = prompts

    class Pipe: ...

    denoiser = Denoiser(Pipe())
    denoiser.encode_instead(["a photo of x", "y!"], of=["x", "y"])
    denoiser.encode(("x", "y"))
    assert denoiser.seen == ["a photo of x", "y!"]
    denoiser.encode(["x"])  # other texts are encoded as they are
    assert denoiser.seen == ["x"]
