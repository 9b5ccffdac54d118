"""The page and its server (gradio)."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ttsnap.demo import theme
from ttsnap.demo.asked import ALGORITHMS, Limits, Offer, kernel_of
from ttsnap.demo.border import Border
from ttsnap.demo.handlers import PROMPTS, Handlers
from ttsnap.demo.models import Models
from ttsnap.demo.panels import intro

QUOTA = 512 * 2**20
"""Bytes of uploads and downloads that are kept at a time."""
SCENES = ("two red circles and a blue square", "a green cross above a red square", "three yellow triangles")
KERNEL_HINT = """<div class="tt-hint">Keep: how many of the best images come back. Pixels: 0 is the model's own
size.<br>Algorithms marked sde branch: children of one candidate differ only where the sampler draws noise, so they run
with kernel "sde" by themselves.</div>"""
REPLAY_HINT = """<div class="tt-hint">No model runs: the board is drawn from the moves and scores in the file. Stronger
colour is a higher score; pictures are not in a trace.</div>"""
REPLAY_INTRO = """<div class="tt-stage tt-empty"><h2>Replay a search</h2><p>Every search writes a trace.json with its
moves and scores. Upload one to step through it.</p></div>"""


def build(offer: Offer, limits: Limits, models: Models, root: Path, queue_size: int) -> gr.Blocks:
    """The page. `root` is this server's own folder, emptied by whoever made it."""
    handlers = Handlers(offer, limits, models, root)
    page = gr.Blocks(title="ttsnap", analytics_enabled=False, delete_cache=(60, 1800), fill_width=True)
    with page:
        _html(theme.HEADER.format(model=escape(offer.model)))
        with gr.Tabs():
            with gr.Tab("Search"):
                _search_tab(handlers)
            with gr.Tab("Replay a trace"):
                _replay_tab(handlers)
        page.unload(handlers.stop)
    page.queue(max_size=queue_size, api_open=False, default_concurrency_limit=4)
    return page


def serve(
    page: gr.Blocks, limits: Limits, root: Path, *, host: str, port: int | None, share: bool, browser: bool = False,
    wait: bool = True,
) -> Any:  # fmt: skip
    """Start the server; with `wait` until it is interrupted. Returns what gradio's launch returns."""
    from starlette.middleware import Middleware

    border = Middleware(Border, cache=root / "cache", quota=QUOTA)
    return page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=browser,
        prevent_thread_lock=not wait,
        show_error=True,
        quiet=not wait,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        allowed_paths=[],
        max_file_size=limits.upload,
        state_session_capacity=200,
        theme=theme.make_theme(),
        css_paths=[theme.CSS],
        favicon_path=theme.MARK,
        app_kwargs={"middleware": [border], "docs_url": None, "redoc_url": None, "openapi_url": None},
    )


def _search_tab(handlers: Handlers) -> None:
    offer, limits = handlers.offer, handlers.limits
    defaults = handlers.models.defaults(offer.model)
    prompts = SCENES if offer.model == "embedded" else PROMPTS[:3]
    with gr.Row(equal_height=False, elem_classes="tt-layout"):
        with gr.Column(elem_classes="tt-ask"):
            prompt = gr.Textbox(prompts[0], label="Prompt", lines=2, max_length=limits.prompt, elem_id="prompt")
            with gr.Row(elem_classes="tt-chips"):
                for text in prompts:
                    chip = gr.Button(text, size="sm", min_width=0)
                    chip.click(None, None, prompt, js=f"() => {text!r}", api_visibility="private")
                surprise = gr.Button("Surprise me", size="sm", min_width=0, elem_id="surprise")
            with gr.Row(elem_classes="tt-buttons"):
                go = gr.Button("Search", variant="primary", min_width=100, elem_id="search")
                stop = gr.Button("Stop", variant="secondary", min_width=70, elem_id="stop")
            compare = gr.Button("Compare with best-of-N", variant="secondary", elem_id="compare")
            status = _html('<div class="tt-word"></div>', elem_classes="tt-state", elem_id="status")
        with gr.Column(elem_classes="tt-set"):
            algorithm = gr.Dropdown(_algorithms(), value="seed-pruning", label="Algorithm", elem_id="algorithm")
            budget = gr.Dropdown(
                [("low: 5 images' worth", "low"), ("medium: 20 images' worth", "medium"),
                 ("high: 80 images' worth", "high"), ("200nfe: evaluations", "200nfe"), ("5s: seconds", "5s")],
                value="medium", label="Budget", allow_custom_value=True, elem_id="budget",
                info="Or write your own: 150nfe, 12images, 10s",
            )  # fmt: skip
            steps = gr.Slider(2, limits.steps, defaults.get("num_inference_steps", 28), step=1, label="Denoising steps",
                              elem_id="steps")  # fmt: skip
            with gr.Accordion("More settings", open=False):
                rewards = gr.Dropdown(list(offer.rewards), value=[offer.rewards[0]], multiselect=True, label="Reward",
                                      max_choices=limits.rewards, info="Several are averaged")  # fmt: skip
                with gr.Row():
                    seed = gr.Number(0, label="First seed", precision=0, min_width=90, elem_id="seed")
                    keep = gr.Number(1, label="Keep", precision=0, min_width=90)
                    size = gr.Number(0, label="Pixels", precision=0, min_width=90)
                model = gr.Textbox(offer.model, label="Model: hub id or folder", interactive=offer.any_model,
                                   visible=offer.any_model)  # fmt: skip
                _html(KERNEL_HINT)
        with gr.Column(elem_classes="tt-show"):
            stage = _html(intro(), elem_id="stage")
            winner = gr.DownloadButton("Download the image", visible=False, variant="primary", elem_id="download")
            with gr.Accordion("Files, and how to repeat this search", open=False, elem_id="after"):
                files = gr.File(label="Images with their settings inside, contact sheet, trace", file_count="multiple",
                                interactive=False)  # fmt: skip
                python = gr.Code(label="In Python", language="python", interactive=False, show_line_numbers=False)
                command = gr.Code(label="On the command line", language="shell", interactive=False,
                                  show_line_numbers=False, wrap_lines=True)  # fmt: skip
    inputs = [prompt, algorithm, rewards, budget, steps, seed, keep, size, model]
    run: dict[str, Any] = {
        "inputs": inputs,
        "outputs": [stage, status, winner, files, python, command],
        "show_progress": "minimal",
        "show_progress_on": status,
        "concurrency_id": "device",
        "concurrency_limit": 1,
        "trigger_mode": "once",
    }
    gr.on([go.click, prompt.submit], handlers.search, api_name="search", **run)
    compare.click(handlers.compare, api_name="compare", **run)
    stop.click(handlers.stop, None, None, queue=False, api_name="stop")
    surprise.click(handlers.surprise, None, [prompt, seed], queue=False, api_visibility="private")


def _replay_tab(handlers: Handlers) -> None:
    private: dict[str, Any] = {"api_visibility": "undocumented", "show_progress": "hidden", "preprocess": False}
    with gr.Row(equal_height=False, elem_classes="tt-layout"):
        with gr.Column(elem_classes="tt-ask"):
            trace = gr.File(label="trace.json", file_types=[".json"], height=130, elem_id="trace")
            which = gr.Dropdown([], label="Prompt", visible=False)
            with gr.Row(elem_classes="tt-buttons"):
                play = gr.Button("Play", variant="primary", min_width=80, elem_id="play")
            move = gr.Slider(1, 2, 1, step=1, label="After move", interactive=False, elem_id="move")
            _html(REPLAY_HINT)
        with gr.Column(elem_classes="tt-set"):
            picture = gr.File(label="An image of ttsnap, to see its settings", file_types=[".png"], height=130,
                              elem_id="picture")  # fmt: skip
        with gr.Column(elem_classes="tt-show"):
            board = _html(REPLAY_INTRO, elem_id="replay")
            settings = _html("", elem_id="settings")
    trace.change(handlers.open_trace, trace, [which, move, board], api_name="open_trace", **private)
    which.input(handlers.choose_result, [trace, which], [move, board], api_name="choose_result", **private)
    move.input(handlers.draw_trace, [trace, which, move], board, api_name="draw_trace", trigger_mode="always_last",
               **private)  # fmt: skip
    play.click(handlers.play_trace, [trace, which], [move, board], api_name="play_trace", **private)
    picture.change(handlers.read_picture, picture, settings, api_name="read_picture", **private)


def _html(text: str, **options: Any) -> gr.HTML:
    """HTML that only our style sheet styles."""
    return gr.HTML(text, apply_default_css=False, **options)


def _algorithms() -> list[tuple[str, str]]:
    marks = {name: " · sde" if kernel_of(name) == "sde" else "" for name in ALGORITHMS}
    return [(f"{text}{marks[name]}", name) for name, text in ALGORITHMS.items()]
