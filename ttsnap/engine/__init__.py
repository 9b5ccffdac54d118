"""The live engine: it runs plans on a model in full batches, decodes estimates and asks rewards for
their scores.

live.py is its face. Behind it, in the order in which a row meets them: rows.py, scheduler.py,
executor.py, stepper.py, looks.py, scoring.py, store.py.

It imports torch, the core, the declared options, sampling, rewards and profiling.
"""
