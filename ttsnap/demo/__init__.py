"""The demo: a web page on which people watch searches run (`ttsnap demo`).

It has no search logic: it listens to a search's events. `board`, `asked`, `traces`, `snippet` and the modules that
write HTML are pure and need no gradio; `stream` runs a search in a thread; `app` is the page.
"""
