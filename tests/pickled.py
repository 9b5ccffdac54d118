"""Copies of networks and what holds them, for tests that may change what they are given."""

from __future__ import annotations

import copy
import io
import pickle

import torch


def copier(original):
    """What makes copies of an object as it is now.

    A network is mostly modules, which pickle copies in a quarter of the time that `deepcopy` takes.
    """
    written, tensors = io.BytesIO(), list[torch.Tensor]()

    def set_aside(value):
        if not isinstance(value, torch.Tensor):
            return None
        tensors.append(value)
        return len(tensors) - 1

    pickler = pickle.Pickler(written)
    pickler.persistent_id = set_aside  # type: ignore[method-assign]
    pickler.dump(original)

    def copied():
        reader = pickle.Unpickler(io.BytesIO(written.getvalue()))
        reader.persistent_load = copy.deepcopy(tensors).__getitem__  # type: ignore[method-assign]
        return reader.load()

    return copied
