"""The search loop: it asks algorithms, charges their moves, hands them to an engine and ranks what
comes back.

It imports the core only, and no torch.
"""
