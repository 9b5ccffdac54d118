"""Requests: what is asked of a search, the same for every door, and what strangers may ask for at
all.

Doors (the Python call, the command line, the service, the demo) turn what their users write into
these types. The room is light: it imports no torch.
"""
