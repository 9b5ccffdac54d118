"""Diffusers pipelines open to search: any class, by its stock call.

It imports the engine and what lies below it, and algorithms and rewards by name.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ttsnap.core.names import did_you_mean, load_object
from ttsnap.files.hub import require_repository
from ttsnap.files.reading import foreign, read_json
from ttsnap.options.model import EMBEDDED, PACKAGED, TEXT
from ttsnap.pipelines.model_defaults import defaults_in
from ttsnap.pipelines.quiet import quiet
from ttsnap.pipelines.search_pipeline import SearchPipeline
from ttsnap.request.request import ModelDefaults
from ttsnap.reward_models.registry import parts

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

Stock = TypeVar("Stock")
"""The class of the stock pipeline."""
SEARCH = "ttsnap.pipelines.mixin:SearchMixin"
"""First base of all search pipelines."""
TWIN = "ttsnap.pipelines.calls.twins:search_twin"
CLASS_FOR = "ttsnap.pipelines.calls.pictures:class_for"
"""Imported when they are needed, since they import what loads pipelines."""
SINGLE_FILES = (".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin")
"""How the names of single files of weights end."""


def upgrade(pipe: Stock) -> SearchPipeline[Stock]:
    """The search twin of a loaded stock pipeline: same weights, hooks and settings; the original
    stays as it is.

    Searches suspend its stock call where it calls its network and steps its scheduler
    (ttsnap.pipelines.calls). ValueError for a class whose call cannot be suspended.
    """
    stock: Any = type(pipe)
    cls = search_class(stock)
    if cls is stock:
        return cast("SearchPipeline[Stock]", pipe)
    from ttsnap.pipelines.pipeline_copy import copied

    return cast("SearchPipeline[Stock]", copied(pipe, cls))


def downgrade(pipe: SearchPipeline[Stock]) -> Stock:
    """The stock pipeline that shares the weights of a search pipeline, for code that checks the
    name of the class."""
    from ttsnap.pipelines.pipeline_copy import copied

    return cast(
        Stock,
        copied(pipe, type(pipe).stock_class()) if isinstance(pipe, load_object(SEARCH)) else pipe,
    )


def search_class(cls: Any) -> Any:
    """The search pipeline's class for a pipeline class; the same class where it searches already.

    ValueError for one whose call cannot be suspended.
    """
    return cls if issubclass(cls, load_object(SEARCH)) else load_object(TWIN)(cls)


def twin_class(stock: Any, base: Any, **members: Any) -> Any:
    """The search twin of a class, which no file defines: a subclass of `base` and of the class."""

    def reduce(self: Any, protocol: Any) -> Any:
        made: Any = object.__reduce_ex__(self, protocol)
        # pickle finds the stock class by its name.
        return (_restore, (stock,), *made[2:]) if type(self) is twin else made

    names = {"__module__": __name__, "__reduce_ex__": reduce, **members}
    twin = type(f"Search{stock.__name__}", (base, stock), names)
    return twin


def _restore(stock: Any) -> Any:
    twin = search_class(stock)
    return twin.__new__(twin)


def custom_pipeline() -> str:
    """Path of the file by which diffusers loads a search pipeline of any class, as
    `custom_pipeline=`."""
    return str(Path(__file__).parent / "any_search_pipeline.py")


def load(
    model: str | Path = EMBEDDED, *, task: str | None = None, **options: Any
) -> SearchPipeline[DiffusionPipeline]:
    """A search pipeline from a packaged model's name, a diffusers folder or a hub id. Options go to
    from_pretrained.

    task: what it is to do, where that is not to make images from text: "image-to-image",
    "inpainting", "editing", ... (ttsnap.options.model.TASKS), by diffusers' class for it over the
    model's parts. Weights are read from safetensors only, unless `use_safetensors` says otherwise,
    and no code that comes with a model runs without `trust_remote_code=True`. Raises ValueError
    that says what is wrong when there is no such folder or the class cannot be searched.
    """
    import diffusers
    from diffusers import DiffusionPipeline

    where = located(model)
    ours = _packaged(model)
    # diffusers asks for every part, also for those that were saved as absent (SD3 without T5)
    if where is not None:
        index = index_of(where, set(options), trusted=bool(options.get("trust_remote_code")))
        if (kind := index.get("_class_name")) in dir(
            diffusers
        ) and "custom_pipeline" not in options:
            # What searches do not support is refused before anything is loaded.
            _search_class_for(getattr(diffusers, kind), task)
        options = {
            **{name: None for name, kind in index.items() if kind == [None, None]},
            **options,
        }
    # A packaged model loads at once, and needs no advice to install torchvision: it has no image
    # processor.
    silent = nullcontext() if ours is None else quiet("transformers")
    with foreign(f"cannot load model {model}"), silent:
        if where is None:
            require_repository(str(model), options.get("revision"), options.get("cache_dir"))
        pipe = DiffusionPipeline.from_pretrained(
            model if where is None else where, **{"use_safetensors": True, **options}
        )
    if task in (None, TEXT):
        twin = upgrade(pipe)
    else:
        twin = _search_class_for(type(pipe), task).from_pipe(pipe)
        vars(twin)["task"] = task
    if ours is not None:
        twin.check_prompt = ours.world.parse
    return twin


def _search_class_for(stock: Any, task: str | None) -> Any:
    """The search twin that does a task with the parts of a stock class. ValueError where there is
    none."""
    if task in (None, TEXT):
        return search_class(stock)
    return search_class(load_object(CLASS_FOR)(stock, task))


def index_of(folder: Path, given: Collection[str], trusted: bool) -> dict[str, Any]:
    """model_index.json: the parts of a model. ValueError for a part, not `given`, from a library
    other than usual.

    diffusers imports the library by the name in the file, which may lie in the working directory.
    """
    import diffusers.pipelines

    index = read_json(folder / "model_index.json")
    known = {"diffusers", "transformers", *dir(diffusers.pipelines)}
    if not isinstance(index, dict):
        raise ValueError(
            f"{folder / 'model_index.json'} must hold an object, got {str(index)[:60]}"
        )
    for name, kind in index.items():
        part = (
            isinstance(kind, list) and bool(kind) and isinstance(kind[0], str) and name not in given
        )
        if part and kind[0] not in known and not trusted:
            raise ValueError(
                f"the {name} of model {folder} is code from {kind[0]!r:.60}: nothing but diffusers"
                " and transformers is imported because a model names it. Load that part yourself"
                " and pass it to load(), or pass trust_remote_code=True where you trust the model"
            )
    return index


def makes_videos(model: str | Path) -> bool:
    """Whether the model in a folder makes videos, by what its class returns: nothing is loaded.
    False for a hub id, and for a class that cannot be searched."""
    import diffusers

    where = located(model)
    kind = None if where is None else index_of(where, (), trusted=True).get("_class_name")
    stock = getattr(diffusers, str(kind), None)
    if stock is None:
        return False
    try:
        return bool(search_class(stock).makes_videos())
    except ValueError:
        return False


def located(model: str | Path) -> Path | None:
    """The folder of a model, None for a hub id. Nothing is loaded. ValueError where there is no
    such folder, and for a single file of weights."""
    where = _folder(model)
    name = str(model)
    if not where.exists() and not name.startswith((".", "/", "~")) and name.count("/") == 1:
        return None
    if where.suffix in SINGLE_FILES:
        raise ValueError(
            f"{name} is one file of weights, and load() takes a diffusers folder or a hub id; load"
            f" the file by its class, as StableDiffusionXLPipeline.from_single_file({name!r}), and"
            " upgrade() what comes back"
        )
    if not (where / "model_index.json").is_file():
        meant = did_you_mean(name, PACKAGED)
        raise ValueError(
            f"no diffusers pipeline at {name}: expected a folder with model_index.json, or a hub"
            f" id{meant}"
        )
    return where


def defaults(model: str | Path = EMBEDDED) -> dict[str, Any]:
    """The call arguments that a model recommends in its folder's ttsnap.json; {} where there is
    none.

    A search takes them by itself; they are of use for a call without `search=`.
    """
    return dict(recommended(model).call)


def recommended(model: str | Path) -> ModelDefaults:
    """All that a model recommends: arguments of its call, a reward, a drafter. ValueError for a
    damaged ttsnap.json."""
    ours = _packaged(model)
    return replace(
        defaults_in(_folder(model)),
        canonical=str if ours is None else ours.canonical,
        parts=partial(parts, packaged=ours is not None),
    )


def _packaged(model: str | Path) -> Any:
    return load_object("ttsnap.pipelines.packaged:MODELS").get(str(model))


def _folder(model: str | Path) -> Path:
    ours = _packaged(model)
    return Path(model).expanduser() if ours is None else Path(ours.folder)
