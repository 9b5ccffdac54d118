"""Generation as a service: OpenAI's images API over the search loop (`ttsnap serve`).

Requests of many callers share the batches of one pipeline. The room imports neither the command line nor the demo.

- `requests.py` and `edits.py` read bodies of requests; `limits.py` bounds them; `keys.py` knows callers.
- `worker.py` runs searches in a thread of its own: `tickets.py` are their requests, `engines.py` make their engines.
- `app.py` is the web application, `replies.py` writes its answers, `server.py` is its socket.
- `opening.py` makes an operator's offer; `deployment.py` starts replicas; `monitoring.py` has logs and metrics.
"""
