"""A double of what the nodes import of ComfyUI beside double.py: how nodes are declared, and the node KSampler."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.comfyui.double import LOOPS, SHAPE, Const, Guider, Model, Patcher, Stock, Vae, comfyui

TYPES = ("Model", "Conditioning", "Latent", "Vae", "Image", "Int", "Float", "String", "Combo")


class IoType(str):
    """As ComfyUI's own: "*" is not unlike any other."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __ne__(self, other: object) -> bool:
        return not self == "*" and not self == other


def kind(io_type: str) -> Any:
    """A type of comfy_api's io: its inputs and outputs hold what they are declared with."""

    def declared(id: str = "", options: Any = None, optional: bool = False, **more: Any) -> Any:
        return SimpleNamespace(**{"min": None, "max": None, **more}, id=id, io_type=IoType(io_type), optional=optional,
                               **({} if options is None else {"options": options}))  # fmt: skip

    return SimpleNamespace(Input=declared, Output=declared, io_type=io_type)


class Schema(SimpleNamespace):
    def __init__(self, node_id: str, name: str, category: str, inputs: Any, outputs: Any, **more: Any) -> None:
        super().__init__(node_id=node_id, inputs=inputs, outputs=outputs, **more)


class NodeOutput:
    def __init__(self, *result: Any) -> None:
        self.result = result


class KSampler:
    """comfy.samplers.KSampler: its steps are evenly spaced; and the inputs of the node of that name."""

    SAMPLERS, SCHEDULERS = [*LOOPS, "dpm_adaptive"], ["simple", "karras"]

    def __init__(self, model: Any, steps: int, *_: Any) -> None:
        self.sigmas = torch.linspace(1.0, 0.0, steps + 1)

    @classmethod
    def INPUT_TYPES(cls) -> Any:  # noqa: N802
        return {"required": {
            **{name: ("CONDITIONING", {}) for name in ("positive", "negative")},
            "model": ("MODEL", {}), "latent_image": ("LATENT", {}),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
            "steps": ("INT", {"default": 2, "min": 1, "max": 10000}),
            "cfg": ("FLOAT", {"default": 2.0, "min": 0.0, "max": 100.0}),
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0}),
        }}  # fmt: skip


class NodePatcher(Patcher):
    """A ModelPatcher, as nodes get it."""

    model_options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__(Model(Const()))
        vars(self.model)["latent_format"] = None

    def clone(self) -> NodePatcher:
        return self


class CFGGuider(Guider):
    def __init__(self, model: NodePatcher) -> None:
        super().__init__(model.model)
        self.model_patcher = model

    def set_conds(self, positive: Any, negative: Any) -> None:
        pass

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg


class Scorer:
    """A node of somebody else that takes an image and a model, and opens what is named in the model's place."""

    RETURN_TYPES, FUNCTION = ("FLOAT",), "score"

    @classmethod
    def INPUT_TYPES(cls) -> Any:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "scorer": ("SCORER",), "text": ("STRING",)}}

    def score(self, image: Tensor, scorer: Any, text: str) -> tuple[float]:
        if isinstance(scorer, str | bytes):
            open(scorer).close()
        return (float(image.mean()),)


def objects() -> dict[str, Any]:
    """What links of ComfyUI's own types carry, by type."""
    conditioning = [[torch.zeros(1, 1, 4), {}]]
    return {"MODEL": NodePatcher(), "CONDITIONING": conditioning, "VAE": Vae(),
            "LATENT": {"samples": torch.zeros(SHAPE)}, "IMAGE": torch.rand(2, 8, 8, 3), "*": object()}  # fmt: skip


@contextmanager
def nodes_of_comfyui() -> Iterator[None]:
    """`ttsnap.comfyui.nodes` can be imported, with ComfyUI's node KSampler, and one of somebody else, "Scorer"."""
    members: dict[str, dict[str, Any]] = {
        "comfy.sample": {"fix_empty_latent_channels": lambda model, latent, *_: latent},
        "comfy.utils": {"ProgressBar": lambda total: SimpleNamespace(update_absolute=lambda *_: None)},
        "latent_preview": {"get_previewer": lambda *_: None},
        "nodes": {"KSampler": KSampler, "NODE_CLASS_MAPPINGS": {"Scorer": Scorer}, "NODE_DISPLAY_NAME_MAPPINGS": {}},
        "comfy_api": {},
        "comfy_api.latest": {"ComfyExtension": object, "io": SimpleNamespace(
            ComfyNode=object, Schema=Schema, NodeOutput=NodeOutput, Custom=kind, AnyType=kind("*"),
            **{name: kind(name.upper()) for name in TYPES})},
    }  # fmt: skip
    before = {name: sys.modules.pop(name, None) for name in ("ttsnap.comfyui.nodes", *members)}
    with comfyui() as management:
        comfy = sys.modules["comfy"]
        for name, inside in members.items():
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(inside)
            if name.startswith("comfy."):
                setattr(comfy, name.split(".")[1], sys.modules[name])
        vars(management).update(get_torch_device=lambda: torch.device("cpu"), processing_interrupted=lambda: False)
        vars(sys.modules["comfy.samplers"]).update(
            KSampler=KSampler, CFGGuider=CFGGuider, sampler_object=lambda name: Stock(LOOPS[name])
        )
        try:
            importlib.import_module("ttsnap.comfyui.nodes")
            yield
        finally:
            for name, module in before.items():
                sys.modules.pop(name, None)
                if module is not None:
                    sys.modules[name] = module
