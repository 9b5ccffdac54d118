"""The page's form and stage, and the functions that their parts call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ttsnap.demo.form import algorithm_choices, examples, hint
from ttsnap.demo.handlers import FIELDS, Handlers
from ttsnap.demo.html import line
from ttsnap.demo.panels import intro

BUDGETS = ("5 images", "20 images", "80 images")
BADGE = "(name) => { document.querySelector('.tt-model').textContent = name; }"
"""Writes the model's name into the page's header."""
RANDOM = "() => Math.floor(Math.random() * 100000)"
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
"""Of the stage: what a click there does."""
BEGUN = """() => (matchMedia("(max-width: 860px)").matches
  && document.querySelector(".tt-show").scrollIntoView({ behavior: "smooth" }))"""
"""On a phone, where what a search shows stands below its form, it comes into view."""
WITH_PLACE = """(file, names) => [[...names.filter((name) => name !== "place"), ...(file ? ["place"] : [])]]"""
"""A picture that is changed brings the reward that looks whether things stay where they are."""
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def html(text: str, **options: Any) -> gr.HTML:
    """HTML with our style sheet alone."""
    return gr.HTML(text, apply_default_css=False, **options)


def search_form(handlers: Handlers) -> None:
    """The form, what a search shows, and its files."""
    offered = examples(handlers.offer)
    with gr.Row(equal_height=False, elem_classes="tt-layout"):
        with gr.Column(elem_classes="tt-ask"):
            most = handlers.limits.prompt
            prompt = gr.Textbox(
                offered[0]["prompt"], label="Prompt", lines=2, max_length=most, elem_id="prompt"
            )
            with gr.Row(elem_classes="tt-chips"):
                chips = [
                    gr.Button(example["prompt"], size="sm", min_width=0) for example in offered
                ]
                surprise = gr.Button("Surprise me", size="sm", min_width=0, elem_id="surprise")
            compare = gr.Button("Compare with best-of-N", variant="primary", elem_id="compare")
            with gr.Row(elem_classes="tt-buttons"):
                go = gr.Button("Search", min_width=64, elem_id="search")
                stop = gr.Button(
                    "Stop", variant="stop", min_width=56, elem_id="stop", interactive=False
                )
            status = html(
                line("word", ""), elem_classes="tt-state", elem_id="status", label="Status"
            )
        with gr.Column(elem_classes="tt-set"):
            form = _settings(handlers, prompt, offered[0])
            for chip, example in zip(chips, offered, strict=True):
                _fills(chip, [form[name] for name in example], list(example.values()))
        with gr.Column(elem_classes="tt-show"):
            stage = html(intro(), elem_id="stage", label="Board", js_on_load=SCRIPT)
            winner = gr.DownloadButton(
                "Download the image", visible=False, variant="primary", elem_id="download"
            )
            with gr.Accordion("Files, and how to repeat this search", open=False, elem_id="after"):
                files = gr.File(
                    label="Images with their settings inside, contact sheet, trace",
                    file_count="multiple",
                    interactive=False,
                )
                python = gr.Code(
                    label="In Python", language="python", interactive=False, show_line_numbers=False
                )
                command = gr.Code(
                    label="On the command line",
                    language="shell",
                    interactive=False,
                    show_line_numbers=False,
                    wrap_lines=True,
                )
    inputs = [form[name] for name in FIELDS]
    for field in inputs:
        # Our own checks read what was sent: those of gradio name no field, but files of this server.
        vars(field)["preprocess"] = _sent
    shown: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": status}
    device: dict[str, Any] = {
        "concurrency_id": "device",
        "concurrency_limit": 1,
        "trigger_mode": "once",
    }
    outputs = [stage, status, winner, files, python, command, stop]
    # The first of a click's functions: gradio runs one after the other, and a search is long.
    gr.on([go.click, compare.click, prompt.submit], None, None, None, js=BEGUN, **PRIVATE)
    go.click(handlers.search, inputs, outputs, api_name="search", **shown, **device)
    gr.on(
        [compare.click, prompt.submit],
        handlers.compare,
        inputs,
        outputs,
        api_name="compare",
        **shown,
        **device,
    )
    stage.click(handlers.lead, None, None, queue=False, **PRIVATE)
    stop.click(handlers.stop, None, None, queue=False, api_name="stop")
    surprise.click(handlers.surprise, form["model"], [prompt, form["seed"]], queue=False, **PRIVATE)


def _sent(value: Any) -> Any:
    """A field's value as it came; of a picture the file, in the server's own cache."""
    return (value.path or "") if hasattr(value, "path") else value


def _settings(handlers: Handlers, prompt: Any, preset: Mapping[str, Any]) -> dict[str, Any]:
    """The settings below the prompt, by the names of FIELDS. preset: values of some of them."""
    offer = handlers.offer
    limits = handlers.limits
    defaults = offer.defaults(offer.model).call
    steps_now = defaults.get("num_inference_steps", 28)
    budget_now = preset.get("budget", BUDGETS[1])
    algorithm = gr.Dropdown(
        algorithm_choices(),
        value="seed-pruning",
        label="Algorithm",
        elem_id="algorithm",
        filterable=False,
    )
    about = html(line("hint", hint("seed-pruning")))
    drafter = "A drafter guesses each seed's image first; pruning goes on with the best"
    with gr.Group(visible=bool(offer.draft)):  # a frame of its own
        draft = gr.Checkbox(
            offer.drafts_first, label="Draft seeds first", info=drafter, elem_id="draft"
        )
    budget = gr.Textbox(
        budget_now,
        label="Budget",
        max_lines=1,
        elem_id="budget",
        max_length=60,
        placeholder="5 images, 200nfe, 10s",
    )
    with gr.Row(elem_classes="tt-chips"):
        for text in BUDGETS:
            _fills(gr.Button(text, size="sm", min_width=0), [budget], [text])
    comes_to = html(handlers.budget_hint(budget_now, steps_now), elem_id="budget-hint")
    steps = gr.Slider(2, limits.steps, steps_now, step=1, label="Denoising steps", elem_id="steps")
    with gr.Row(elem_classes="tt-pair"):
        guidance = gr.Number(
            defaults.get("guidance_scale"),
            label="Guidance",
            min_width=90,
            elem_id="guidance",
            placeholder="model's own",
            step=0.5,
        )
        seed = gr.Number(
            preset.get("seed", 0), label="First seed", precision=0, min_width=90, elem_id="seed"
        )
        random = gr.Button("Random", size="sm", min_width=64, elem_id="random")
    negative = gr.Textbox(
        "",
        label="Negative prompt: what not to show",
        lines=1,
        max_length=limits.prompt,
        elem_id="negative",
    )
    with gr.Accordion("Change a picture", open=False, elem_id="change"):
        picture = gr.Image(
            label="PNG, JPEG or WebP",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=140,
            buttons=[],
            elem_id="picture",
        )
        strength = gr.Slider(
            0.05, 1, 0.7, step=0.05, label="Strength: how much of it is redrawn", elem_id="strength"
        )
    with gr.Accordion("Rewards, image size, how many to keep", open=False):
        rewards = gr.Dropdown(
            list(offer.rewards),
            value=[offer.rewards[0]],
            multiselect=True,
            label="Reward",
            max_choices=limits.rewards,
            info="What is searched for, or their mean",
        )
        with gr.Row():
            keep = gr.Number(1, label="Images to keep", precision=0, min_width=90)
            size = gr.Number(
                None, label="Pixels a side", precision=0, min_width=90, placeholder="model's own"
            )
        diverse = gr.Checkbox(
            False, label="Images that differ, where several are kept", elem_id="diverse"
        )
        model = gr.Textbox(
            offer.model,
            label="Model: hub id or folder",
            interactive=offer.any_model,
            visible=offer.any_model,
        )
    model.change(None, model, None, js=BADGE, **PRIVATE)
    if "place" in offer.rewards:
        picture.change(None, [picture, rewards], rewards, js=WITH_PLACE, **PRIVATE)
    texts = {name: line("hint", hint(name)) for _, name in algorithm_choices()}
    algorithm.change(None, algorithm, about, js=f"(name) => ({json.dumps(texts)})[name]", **PRIVATE)
    priced: list[Any] = [budget, steps, picture, strength]
    last = {"queue": False, "trigger_mode": "always_last", **PRIVATE}
    for field in priced:
        field.change(handlers.budget_hint, priced, comes_to, **last)
    random.click(None, None, seed, js=RANDOM, **PRIVATE)
    return {
        "prompt": prompt,
        "algorithm": algorithm,
        "rewards": rewards,
        "budget": budget,
        "steps": steps,
        "seed": seed,
        "keep": keep,
        "size": size,
        "model": model,
        "negative": negative,
        "guidance": guidance,
        "draft": draft,
        "picture": picture,
        "strength": strength,
        "diverse": diverse,
    }


def _fills(button: gr.Button, fields: Sequence[Any], values: Sequence[Any]) -> None:
    """A button that writes a value into each of these fields."""
    written = json.dumps(values[0] if len(values) == 1 else values)
    button.click(None, None, list(fields), js=f"() => {written}", **PRIVATE)
