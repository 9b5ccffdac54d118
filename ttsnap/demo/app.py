"""The page and its server (gradio)."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import LocalFont

from ttsnap.demo.form import DemoLimits, group_css
from ttsnap.demo.handlers import Handlers
from ttsnap.demo.tabs import html, search_form
from ttsnap.demo.worker import Models
from ttsnap.request.offer import ServingCatalog

CSS = Path(__file__).with_name("style.css")
MARK = Path(__file__).with_name("mark.svg")
"""The project's one logo, also of the documentation: two dropped candidates, and one that went
on."""
HEADER = f"""<header class="tt-header"><div class="tt-mark">{MARK.read_text(encoding="utf-8")}ttsnap</div>
<p>Better images from frozen diffusion and flow models, by spending inference compute on purpose.</p>
<div class="tt-model">{{model}}</div></header>"""


def build(
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


def serve(
    page: gr.Blocks,
    limits: DemoLimits,
    *,
    host: str,
    port: int | None,
    share: bool,
    browser: bool = False,
    wait: bool = True,
) -> Any:
    """Start the server, and wait until it is interrupted. Returns the values of gradio's launch."""
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
        theme=make_theme(),
        css_paths=[CSS],
        favicon_path=MARK,
        css=group_css(),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )


def make_theme() -> Any:
    """Deep teal on paper or on ink, gold for the winner. Fonts come from this server."""
    teal = gr.themes.Color(
        "#effaf8",
        "#d3f1ec",
        "#a9e2da",
        "#74ccc2",
        "#43b0a6",
        "#22958c",
        "#137870",
        "#11605b",
        "#114d4a",
        "#10403e",
        "#062625",
        name="teal",
    )
    ink = gr.themes.Color(
        "#f7f7f4",
        "#efeeea",
        "#e0dfd9",
        "#cac9c3",
        "#9b9b97",
        "#73757a",
        "#53575f",
        "#3b4048",
        "#272b32",
        "#1a1d22",
        "#101216",
        name="ink",
    )
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
