"""Searches with any pipeline of diffusers: its stock call runs for each candidate of a search.

    upgrade(pipe)                   pipeline.py: the search twin of any class
        │ opening.py: one call, opened for a search
        ├── rehearsal.py            what the call does, found without its networks
        ├── widths.py               whether a frame can make several images (widening.py)
        └── denoiser.py             a Denoiser: rows of a search, as frames
                │ conditions.py     what each row is of: a prompt, perhaps a seed
                ├── pool.py         frames that wait, by condition and step
                │     └── frame.py  one stock call under way, in a thread of its own
                ├── hub.py          joins the calls of many frames ──> network, decoder
                ├── first_latents.py, ends.py    where frames begin; images of their ends
                └── drafts.py       the same call, by a drafter

A frame is suspended where search decides: where first latents are drawn, where a part is called,
and where the scheduler steps (questions.py). All between these is the pipeline's own code, so that
a winner is the image that the stock call makes of its seed.
"""
