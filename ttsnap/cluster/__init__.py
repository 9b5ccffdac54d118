"""One search on many engines: an actor of Ray for each device, each with a live engine of its own;
and recordings.

It imports the engine, recordings and what lies below them, and no pipelines: a function that makes
an engine is sent to the devices. Few files import Ray, so that all others are tested without it.
"""
