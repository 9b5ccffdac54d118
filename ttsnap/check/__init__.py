"""What `ttsnap check` measures on a user's own model and machine: a ladder of rungs, each a file,
whose figures become evidence that others can read. `ladder.py` holds what rungs share; a rung takes
a `Setup` and gives a `Rung`."""
