"""The demo: a web page on which people watch searches run (`ttsnap demo`).

It has no search logic: it listens to a search's events. gradio is needed by the page alone.

- `app.py` is the page and its server, `handlers.py` the functions of its parts.
- `form.py` reads the fields, and says how to repeat a search; `worker.py` and `live.py` run searches
  in threads, and stream what they do.
- `panels.py` and `html.py` show a search: the board as `results/course.py` draws every
  search.
"""
