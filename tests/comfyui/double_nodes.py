"""A double of what the nodes import of ComfyUI beside double.py: how nodes are declared, and the
node KSampler."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.comfyui.double import (
    LOOPS,
    SHAPE,
    Const,
    Guider,
    Model,
    Patcher,
    Stock,
    Vae,
    comfyui,
    installed,
)

TYPES = (
    "Model",
    "Conditioning",
    "Latent",
    "Vae",
    "Image",
    "Int",
    "Float",
    "Boolean",
    "String",
    "Combo",
)


class IoType(str):
    """As ComfyUI's own: "*" is not unlike any other."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __ne__(self, other):
        return not self == "*" and not self == other


def kind(io_type):
    """A type of comfy_api's io: its inputs and outputs hold what they are declared with."""

    def declared(id="", options=None, optional=False, **more):
        return SimpleNamespace(
            **{"min": None, "max": None, **more},
            id=id,
            io_type=IoType(io_type),
            optional=optional,
            **({} if options is None else {"options": options}),
        )

    return SimpleNamespace(Input=declared, Output=declared, io_type=io_type)


def schema(node_id, name, category, inputs, outputs, **more):
    return SimpleNamespace(node_id=node_id, inputs=inputs, outputs=outputs)


class KSampler:
    """comfy.samplers.KSampler: its steps are evenly spaced; and the inputs of the node of that
    name."""

    SAMPLERS, SCHEDULERS = [*LOOPS, "dpm_adaptive"], ["simple", "karras"]

    def __init__(self, model, steps, *_):
        self.sigmas = torch.linspace(1.0, 0.0, steps + 1)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                **{name: ("CONDITIONING", {}) for name in ("positive", "negative")},
                "model": ("MODEL", {}),
                "latent_image": ("LATENT", {}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "steps": ("INT", {"default": 2, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 2.0, "min": 0.0, "max": 100.0}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0}),
            }
        }


class Scorer:
    """A node of somebody else that takes an image and a model, and opens what is named in the
    model's place."""

    RETURN_TYPES, FUNCTION = ("FLOAT",), "score"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"image": ("IMAGE",), "scorer": ("SCORER",), "text": ("STRING",)}}

    def score(self, image, scorer, text):
        if isinstance(scorer, str | bytes):
            open(scorer).close()
        return (float(image.mean()),)


def objects():
    """What links of ComfyUI's own types carry, by type."""
    conditioning = [[torch.zeros(1, 1, 4), {}]]
    return {
        "MODEL": Patcher(Model(Const())),
        "CONDITIONING": conditioning,
        "VAE": Vae(),
        "LATENT": {"samples": torch.zeros(SHAPE)},
        "IMAGE": torch.rand(2, 8, 8, 3),
        "*": object(),
    }


@contextmanager
def nodes_of_comfyui():
    """`ttsnap.comfyui.nodes` can be imported, with ComfyUI's node KSampler, and one of somebody
    else, "Scorer"."""
    types = {name: kind(name.upper()) for name in TYPES}
    io = SimpleNamespace(
        ComfyNode=object,
        Schema=schema,
        NodeOutput=lambda *made: SimpleNamespace(result=made),
        Custom=kind,
        AnyType=kind("*"),
        **types,
    )
    ours = "ttsnap.comfyui.nodes"
    with comfyui() as management, pytest.MonkeyPatch.context() as patch:
        sampling = {
            "CFGGuider": lambda of: Guider(of.model),
            "sampler_object": lambda name: Stock(LOOPS[name]),
        }
        vars(sys.modules["comfy.samplers"]).update(sampling, KSampler=KSampler)

        def update(*told):
            management.updates.append(told)
            if management.bars_hear:
                management.throw_exception_if_processing_interrupted()

        vars(sys.modules["comfy.utils"]).update(
            ProgressBar=lambda total: SimpleNamespace(update_absolute=update)
        )
        installed(
            patch,
            {
                "comfy.sample": {"fix_empty_latent_channels": lambda model, latent, **_: latent},
                "latent_preview": {"get_previewer": lambda *_: None},
                "comfy_api": {},
                "nodes": {
                    "KSampler": KSampler,
                    "NODE_CLASS_MAPPINGS": {"Scorer": Scorer},
                    "NODE_DISPLAY_NAME_MAPPINGS": {},
                },
                "comfy_api.latest": {"ComfyExtension": object, "io": io},
            },
        )
        patch.setitem(sys.modules, ours, ModuleType(ours))
        del sys.modules[ours]  # it is read anew, and again afterwards
        importlib.import_module(ours)
        yield management
