"""Files: read as data that anyone may have written, checked against types and bounds, written whole
or not at all.

It imports nothing else of ttsnap.
"""
