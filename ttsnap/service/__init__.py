"""Generation as a service: OpenAI's APIs of images and videos over the search loop (`ttsnap
serve`).

Requests of many callers share the batches of one pipeline. The room imports neither the command
line nor the demo.

- `limits.py` knows callers by their keys, and bounds what they may ask.
- `requests.py` has the bodies, and the searches that they stand for; `forms.py` reads what was
  sent.
- `tickets.py` are requests on their way, and the replies that their results become.
- `worker.py` runs searches in a thread of its own, on engines of `engine_pool.py`, which
  `engines.py` makes.
- `jobs.py` runs requests that are answered later, and tells of them; `job_store.py` keeps them.
- `app.py` is the web application; `server.py` makes an operator's offer, and is the socket.
- `monitoring.py` has logs and metrics; `tracing.py` has traces.
"""
