"""The stock call of a pipeline, suspended: it runs for the candidates of a search.

    upgrade(pipe)                    twins.py: the search twin of a class
      │
      ├── opening.py                 one call, opened for a search: its arguments (stock_call.py), and
      │     ├── rehearsal.py         what it does, found by runs without its networks (runs.py, dummies.py)
      │     ├── widening.py          whether a frame can make several images
      │     └── schedules.py         its noise levels, x0 estimates and steps
      │
      └── ../denoiser.py             a Denoiser: rows of a search, in frames
            ├── pool.py              frames that wait, by prompt and step
            │     └── frame.py       one stock call under way, in a thread of its own. It stops (stops.py)
            │                        where latents are drawn, a part is called (parts.py) and a
            │                        scheduler steps (stepping.py)
            ├── hub.py               joins the calls of many frames (joining.py) --> network, decoder
            ├── latents.py           where frames begin, and images of their ends (pictures.py)
            ├── drafts.py            the same call, by a drafter
            ├── coupling.py          groups of seeds that keep each other apart
            └── gradients.py         which parts gradients go through

All between the stops is the pipeline's own code, so that a winner is the image that the stock call
makes of its seed. modular.py is of pipelines of blocks; values.py walks arguments and results.
"""
