"""Generation as a service: OpenAI's images API over the search loop (`ttsnap serve`).

Requests of many callers share the batches of one pipeline. It rests on pipelines and engines and imports neither the
command line nor the demo. `requests.py` reads what a client sends and `limits.py` says how much that may be, `keys.py`
knows who may ask, `worker.py` runs the searches in a thread of its own, `app.py` is the web application, `server.py`
the socket that it listens on.
"""
