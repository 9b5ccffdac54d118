"""The page and its server (gradio)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import LocalFont

from ttsnap.demo.form import FIELDS, DemoLimits, algorithm_choices, examples, group_css, hint
from ttsnap.demo.handlers import Handlers
from ttsnap.demo.html import line
from ttsnap.demo.panels import intro
from ttsnap.demo.worker import Models
from ttsnap.request.offer import ServingCatalog

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
            prompt = gr.Textbox(offered[0]["prompt"], label="Prompt", lines=2, max_length=most)
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
            stage, *files = _results()
    inputs = [form[name] for name in FIELDS]
    for name, field in form.items():
        field.elem_id = name
        # Our own checks read what was sent: those of gradio name no field, but files of this server.
        vars(field)["preprocess"] = _sent
    shown: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": status}
    device: dict[str, Any] = {
        "concurrency_id": "device",
        "concurrency_limit": 1,
        "trigger_mode": "once",
    }
    outputs = [stage, status, *files, stop]
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


def _results() -> tuple[Any, ...]:
    """The stage, the button of the winner, all files, and the search in Python and as a command."""
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
    return stage, winner, files, python, command


def _sent(value: Any) -> Any:
    """A field's value as it came; of a picture the file, in the server's own cache."""
    return (value.path or "") if hasattr(value, "path") else value


def _settings(handlers: Handlers, prompt: Any, preset: Mapping[str, Any]) -> dict[str, Any]:
    """The settings below the prompt, by the names of FIELDS. preset: values of some of them."""
    offer = handlers.offer
    call = offer.defaults(offer.model).call
    steps = call.get("num_inference_steps", 28)
    form = {"prompt": prompt, **_algorithm(offer)}
    budget = preset.get("budget", BUDGETS[1])
    form["budget"] = gr.Textbox(
        budget,
        label="Budget",
        max_lines=1,
        max_length=60,
        placeholder="5 images, 200nfe, 10s",
    )
    with gr.Row(elem_classes="tt-chips"):
        for text in BUDGETS:
            _fills(gr.Button(text, size="sm", min_width=0), [form["budget"]], [text])
    comes_to = html(handlers.budget_hint(budget, steps), elem_id="budget-hint")
    form |= _sampling(handlers.limits, steps, call.get("guidance_scale"), preset.get("seed", 0))
    form |= _picture()
    form |= _more(offer, handlers.limits)
    if "place" in offer.rewards:
        inputs = [form["picture"], form["rewards"]]
        form["picture"].change(None, inputs, form["rewards"], js=WITH_PLACE, **PRIVATE)
    priced = [form[name] for name in ("budget", "steps", "picture", "strength")]
    last = {"queue": False, "trigger_mode": "always_last", **PRIVATE}
    for field in priced:
        field.change(handlers.budget_hint, priced, comes_to, **last)
    return form


def _algorithm(offer: ServingCatalog) -> dict[str, Any]:
    """The algorithm, a hint on it, and whether seeds are drafted."""
    algorithm = gr.Dropdown(
        algorithm_choices(),
        value="seed-pruning",
        label="Algorithm",
        filterable=False,
    )
    about = html(line("hint", hint("seed-pruning")))
    texts = {name: line("hint", hint(name)) for _, name in algorithm_choices()}
    algorithm.change(None, algorithm, about, js=f"(name) => ({json.dumps(texts)})[name]", **PRIVATE)
    drafter = "A drafter guesses each seed's image first; pruning goes on with the best"
    with gr.Group(visible=bool(offer.draft)):  # a frame of its own
        draft = gr.Checkbox(offer.drafts_first, label="Draft seeds first", info=drafter)
    return {"algorithm": algorithm, "draft": draft}


def _sampling(limits: DemoLimits, steps: int, guidance: Any, first: int) -> dict[str, Any]:
    """How an image is denoised, and from which seed on."""
    slider = gr.Slider(2, limits.steps, steps, step=1, label="Denoising steps")
    with gr.Row(elem_classes="tt-pair"):
        scale = gr.Number(
            guidance,
            label="Guidance",
            min_width=90,
            placeholder="model's own",
            step=0.5,
        )
        seed = gr.Number(first, label="First seed", precision=0, min_width=90)
        random = gr.Button("Random", size="sm", min_width=64, elem_id="random")
        random.click(None, None, seed, js=RANDOM, **PRIVATE)
    negative = gr.Textbox(
        "",
        label="Negative prompt: what not to show",
        lines=1,
        max_length=limits.prompt,
    )
    return {"steps": slider, "guidance": scale, "seed": seed, "negative": negative}


def _picture() -> dict[str, Any]:
    """A picture to change."""
    with gr.Accordion("Change a picture", open=False, elem_id="change"):
        return {
            "picture": gr.Image(
                label="PNG, JPEG or WebP",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                height=140,
                buttons=[],
            ),
            "strength": gr.Slider(
                0.05,
                1,
                0.7,
                step=0.05,
                label="Strength: how much of it is redrawn",
            ),
        }


def _more(offer: ServingCatalog, limits: DemoLimits) -> dict[str, Any]:
    """Rewards, what is kept, and the model."""
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
        diverse = gr.Checkbox(False, label="Images that differ, where several are kept")
        model = gr.Textbox(
            offer.model,
            label="Model: hub id or folder",
            interactive=offer.any_model,
            visible=offer.any_model,
        )
    model.change(None, model, None, js=BADGE, **PRIVATE)
    return {"rewards": rewards, "keep": keep, "size": size, "diverse": diverse, "model": model}


def _fills(button: gr.Button, fields: Sequence[Any], values: Sequence[Any]) -> None:
    """A button that writes a value into each of these fields."""
    written = json.dumps(values[0] if len(values) == 1 else values)
    button.click(None, None, list(fields), js=f"() => {written}", **PRIVATE)


CSS = Path(__file__).with_name("style.css")
MARK = Path(__file__).with_name("mark.svg")
"""The project's one logo, also of the documentation: two dropped candidates, and one that went
on."""
TEAL = (
    "#effaf8 #d3f1ec #a9e2da #74ccc2 #43b0a6 #22958c #137870 #11605b #114d4a #10403e #062625 teal"
)
INK = "#f7f7f4 #efeeea #e0dfd9 #cac9c3 #9b9b97 #73757a #53575f #3b4048 #272b32 #1a1d22 #101216 ink"
"""From light to dark, and the name."""
HEADER = f"""<header class="tt-header"><div class="tt-mark">{MARK.read_text(encoding="utf-8")}ttsnap</div>
<p>Better images from frozen diffusion and flow models, by spending inference compute on purpose.</p>
<div class="tt-model">{{model}}</div></header>"""


def build_page(
    offer: ServingCatalog, limits: DemoLimits, models: Models, root: Path, queue_size: int
) -> gr.Blocks:
    """The page. root: a folder of this server's own, which the caller deletes."""
    handlers = Handlers(offer, limits, models, root)
    page = gr.Blocks(
        title="ttsnap", analytics_enabled=False, delete_cache=(60, 1800), fill_width=True
    )
    with page:
        html(HEADER.format(model=escape(offer.model)))
        search_form(handlers)
        page.unload(handlers.stop)
    page.queue(max_size=queue_size, api_open=False, default_concurrency_limit=4)
    return page


def serve(page: gr.Blocks, limits: DemoLimits, **where: Any) -> Any:
    """Start the server, and wait until it is interrupted. Returns the values of gradio's launch.

    where: arguments of that, as server_name and server_port."""
    return page.launch(
        **where,
        show_error=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        allowed_paths=[],
        max_file_size=limits.upload,
        state_session_capacity=200,
        theme=make_theme(),
        css_paths=[CSS],
        favicon_path=MARK,
        css=group_css(),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )


def make_theme() -> Any:
    """Deep teal on paper or on ink, gold for the winner. Fonts come from this server."""
    teal = gr.themes.Color(*TEAL.split())
    ink = gr.themes.Color(*INK.split())
    return gr.themes.Base(
        primary_hue=teal,
        secondary_hue=teal,
        neutral_hue=ink,
        spacing_size="sm",
        radius_size="md",
        font=[LocalFont("IBM Plex Sans", (400, 700)), "system-ui", "sans-serif"],
        font_mono=[LocalFont("IBM Plex Mono", (400, 700)), "ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        background_fill_primary_dark="*neutral_900",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        block_label_text_weight="500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="*neutral_200",
        button_secondary_background_fill_hover="*neutral_300",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
    )
