"""The page and its server (gradio)."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ttsnap.demo import theme
from ttsnap.demo.form import DemoLimits, group_css
from ttsnap.demo.guard import RequestGuard
from ttsnap.demo.handlers import Handlers
from ttsnap.demo.listeners import Listeners
from ttsnap.demo.replaying import Replays
from ttsnap.demo.tabs import html, replay_tab, search_tab
from ttsnap.demo.worker import Models
from ttsnap.request.offer import Offer

QUOTA = 512 * 2**20
"""Bytes of uploads and downloads that are kept at a time."""
AT_ONCE = 4
"""One upload may bring as many files of the largest size."""


def build(offer: Offer, limits: DemoLimits, models: Models, root: Path, queue_size: int) -> tuple[gr.Blocks, Listeners]:
    """The page, and who listens to it. `root` is this server's own folder, emptied by whoever made it."""
    handlers = Handlers(offer, limits, models, root)
    page = gr.Blocks(title="ttsnap", analytics_enabled=False, delete_cache=(60, 1800), fill_width=True)
    with page:
        html(theme.HEADER.format(model=escape(offer.model)))
        with gr.Tabs() as tabs:
            with gr.Tab("Search", id="search"):
                form = search_tab(handlers)
            with gr.Tab("Look at a finished search", id="replay"):
                replay_tab(Replays(handlers), form, tabs)
        page.unload(handlers.stop)
    page.queue(max_size=queue_size, api_open=False, default_concurrency_limit=4)
    handlers.listeners = Listeners(page._queue, handlers.stop_session)
    return page, handlers.listeners


def serve(
    page: gr.Blocks, listeners: Listeners, limits: DemoLimits, root: Path, *, host: str, port: int | None, share: bool,
    browser: bool = False, wait: bool = True,
) -> Any:  # fmt: skip
    """Start the server; with `wait` until it is interrupted. Returns what gradio's launch returns."""
    from starlette.middleware import Middleware

    most = AT_ONCE * limits.upload
    border = Middleware(RequestGuard, cache=root / "cache", quota=QUOTA, most=most, listeners=listeners)
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
        css=group_css(),
        js=theme.SCRIPT.read_text(encoding="utf-8"),
        app_kwargs={"middleware": [border], "docs_url": None, "redoc_url": None, "openapi_url": None},
    )
