"""What a call gives its text encoders beside the prompts."""

from __future__ import annotations

import pytest
import torch

from ttsnap.core.prompt import Prompt
from ttsnap.pipelines.latents.encoder_inputs import EncoderInputs

NO_EMBEDS = {"prompt_embeds": None}


def test_too_few_texts_or_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="1 texts for 2 prompts"):
        EncoderInputs({"prompt_2": ["b"]}, {"prompt_embeds": None}, {}).arguments([Prompt("x"), Prompt("y")])
    with pytest.raises(ValueError, match="embeddings of 1 prompts for 2 prompts"):
        EncoderInputs({}, {"prompt_embeds": None, "negative": torch.zeros(1, 2, 1)}, {}).arguments(
            [Prompt("x"), Prompt("y")]
        )


def test_negative_prompts_are_those_of_the_call_where_prompts_have_none() -> None:
    prompts = [Prompt("x"), Prompt("y", negative="own")]
    for given, name in ((EncoderInputs({"negative_prompt": "n"}, NO_EMBEDS, {}), "negative_prompt"),
                        (EncoderInputs({"prompt": "n"}, NO_EMBEDS, {}), "prompt")):  # fmt: skip
        assert given.arguments(prompts)[name] == ["n", "own"]
    with pytest.raises(ValueError, match="negative ones of their own, and this call is for none"):
        EncoderInputs({"negative_prompt": None}, NO_EMBEDS, {}).arguments(prompts)


def test_pictures_of_prompts_are_refused_where_nothing_reads_them() -> None:
    with pytest.raises(ValueError, match="prompts have image of their own"):
        EncoderInputs({}, NO_EMBEDS, {}).arguments([Prompt("x", inputs={"image": object()})])
