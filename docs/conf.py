"""How Sphinx builds the site: `make docs`. Nothing is fetched and no notebook is run."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

import fastapi  # noqa: E402, F401  autodoc imports modules as type checkers see them, which pydantic is not made for

from ttsnap.version import __version__  # noqa: E402

project = "ttsnap"
author = "the ttsnap authors"
copyright = "the ttsnap authors, Apache-2.0"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
    "plain_docstrings",
    "command_line",
    "algorithm_options",
    "dark_figures",
    "inner_modules",
    "outside_pages",
    "search_arguments",
    "known_drafters",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_ext", "_static", "_dark", "**/.ipynb_checkpoints"]
exclude_patterns += ["contributing"]  # texts for other people's pages

myst_enable_extensions = ["colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    n: f"ttsnap.core.{n}" for n in ("FloatArray", "IntArray", "BoolArray", "Utility")
}
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"

nitpicky = True
# Third parties' types only. There is no intersphinx: the build needs no network.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(?!ttsnap).*\b(Any|Callable|Iterator|Mapping|Sequence|Path|Literal|ClassVar|Protocol|NamedTuple|"
        r"Accelerator|DataclassInstance|Tensor|Module|device|dtype|Generator|Image|ndarray|NDArray|floating|integer|"
        r"bool|BaseOutput|ValidationError|Future|deque)",
    ),
    (
        r"py:.*",
        r"(_thread|dataclasses|torch|numpy|np|nn|diffusers|transformers|PIL|asyncio|collections|contextlib|inspect|pathlib|typing|types|"
        r"logging|threading|starlette|uvicorn|fastapi|ray|annotated_types|pydantic|concurrent|weakref|opentelemetry|httpx)\..*",
    ),
    # Aliases of types, which have no entry, and the bounds within them.
    (
        r"py:class",
        r"rng\.Key|Device|Command|KernelState|CallState|Count|Share|Positive|Name|Steps|Scale|Quality|Format|Annotated\[.*|re\.compile.*|re\.Pattern|None\.Pattern\..*|WIDTH_HEIGHT.*",
    ),
    (r"py:class", r"inf|[\d.]+(e\+\d+)?"),
    # imported for type checks alone
    (r"py:class", r"ObjectRef|ObjectRefGenerator|DiffusionPipeline|Traces"),
    # of fields that pydantic checks, in a type
    (
        r"py:class",
        r"FieldInfo|NoneType|lambda|MaxLen|Interval|Len|Ge|Gt|_PydanticGeneralMetadata",
    ),
]

html_theme = "furo"
html_title = "ttsnap"
html_static_path = ["_static"]
html_css_files = ["ttsnap.css"]
html_js_files = ["which_search.js"]
html_search_scorer = str(DOCS / "_static" / "search_order.js")  # the journal comes last
html_logo = html_favicon = "../ttsnap/demo/mark.svg"  # the demo shows the same
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#14733a", "color-brand-content": "#0b5fae"},
    "dark_css_variables": {"color-brand-primary": "#62c98a", "color-brand-content": "#79b8ff"},
}
html_show_sphinx = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
