"""The demo: a web page on which people watch searches run (`ttsnap demo`).

It has no search logic: it listens to a search's events. gradio is needed by the page alone.

- `app.py` is the page and its server, `tabs.py` its parts, `handlers.py` their functions.
- `form.py` reads the fields; `worker.py` and `live.py` run searches in threads; `stream.py` follows
  them.
- `view.py` is one search on the page. `panels.py`, `chart.py`, `board_html.py` and `html.py` show
  it: the board as `results/drawing.py` draws every search. `snippet.py` says how to repeat it.
"""
