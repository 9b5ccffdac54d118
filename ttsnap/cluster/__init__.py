"""One search on many engines: an actor of Ray for each device, each with a live engine of its own.

It imports the engine and what lies below it, reaches pipelines by name only, and leaves Ray to one file, so that all
the rest is tested without it.
"""
