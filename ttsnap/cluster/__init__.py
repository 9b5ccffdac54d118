"""One search on many engines: an actor of Ray for each device, each with a live engine of its own; and recordings.

It imports the engine, recordings and what lies below them, and no pipelines: what makes an engine is sent to where it
runs. Ray itself is left to few files, so that all the rest is tested without it.
"""
