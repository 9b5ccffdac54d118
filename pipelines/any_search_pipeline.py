"""The search twin of whichever class a model's folder names, by diffusers' `custom_pipeline=`.

diffusers copies this file to a folder of its own, and takes the one pipeline class in it.
"""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from ttsnap.pipelines import search_class


class AnySearchPipeline(DiffusionPipeline):  # type: ignore[misc]
    """What diffusers loads a folder by; the pipeline that comes back is the search twin of the
    folder's class."""

    def __new__(cls, twin: Callable[..., Any] | None = None, **parts: Any) -> Any:
        if twin is None:
            raise ValueError(
                "this custom_pipeline is for DiffusionPipeline.from_pretrained; of a pipeline that"
                " is loaded, ttsnap.pipelines.upgrade(pipe) makes the search pipeline"
            )
        return twin(**parts)

    def __init__(self, twin: Callable[..., Any] | None = None) -> None:
        """Never called: diffusers reads its arguments before a folder's class is known."""

    @classmethod
    def _get_signature_types(cls) -> Mapping[str, Any]:
        return defaultdict(lambda: (inspect.Signature.empty,))  # of parts of any name

    @classmethod
    def extract_init_dict(
        cls, config_dict: Mapping[str, Any], **given: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The parts to load, each as its library and class, and what makes the pipeline of them.

        config_dict: of model_index.json. given: parts and settings that the user has passed.
        ValueError before anything is loaded: for a class that no search takes, and for parts that
        the stock class refuses to lack.
        """
        kind = str(config_dict.get("_class_name"))
        stock = getattr(diffusers, kind, None)
        if not (isinstance(stock, type) and issubclass(stock, DiffusionPipeline)):
            raise ValueError(f"the model's class, {kind!r:.60}, is no pipeline class of diffusers")
        twin = search_class(stock)
        names, _ = stock._get_signature_keys(stock)
        passed = {name: given.pop(name) for name in names if name in given}
        found, unused, hidden = stock.extract_init_dict(config_dict, **given)
        present = {name for name in names if found.get(name, [None])[0] is not None}
        if missing := sorted({*names} - present - passed.keys() - {*stock._optional_components}):
            raise ValueError(
                f"{kind} needs {', '.join(missing)}, which the model does not have: pass what is"
                f" missing to from_pretrained, as {missing[0]}=None where it should be absent"
            )
        parts = {name: found[name] for name in present - passed.keys()}
        settings = {name: value for name, value in found.items() if name not in names}
        own = {**dict.fromkeys(names), **settings, **passed}
        return {**parts, "twin": functools.partial(twin, **own)}, unused, hidden
