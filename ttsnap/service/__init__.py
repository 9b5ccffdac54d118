"""Generation as a service: OpenAI's APIs of images and videos over the search loop (`ttsnap
serve`).

Requests of many callers share the batches of one pipeline. The room imports neither the command
line nor the demo.

- `forms.py` reads what was sent, `requests.py` has the bodies, and the searches that they stand
  for; `limits.py` bounds them.
- `jobs.py` runs requests that are answered later, `job_store.py` keeps them on the disk,
  `job_routes.py` tells of them.
- `worker.py` runs searches in a thread of its own: `tickets.py` are their requests, `engines.py`
  make their engines, over the LoRAs of `loras.py`.
- `app.py` is the web application, `keys.py` knows its callers, `answers.py` and `replies.py`
  answer, `server.py` is its socket.
- `opening.py` makes an operator's offer; `deployment.py` starts replicas.
- `monitoring.py` has logs and metrics; `tracing.py` has traces.
"""
