"""Files: read as data that anyone may have written, as settings held to types and bounds; written whole or not at all,
locked by one process at a time.

It imports nothing else of ttsnap.
"""
