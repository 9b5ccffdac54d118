"""Files: read as data that anyone may have written, written whole or not at all, locked by one process at a time.

It imports nothing else of ttsnap.
"""
