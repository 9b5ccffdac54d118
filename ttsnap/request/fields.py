"""What strangers write in the same words at every door: a view of the options that are offered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from annotated_types import Interval
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from ttsnap.core.names import FieldError
from ttsnap.files.settings import Count, build, kinds_of
from ttsnap.options.every import OFFERED
from ttsnap.options.option import Offered, Option

M = TypeVar("M", bound=BaseModel)
MOST_SCALE = 100.0
"""Of a LoRA, as in ComfyUI."""
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""As `check` reads plain values."""


def field_of(name: str, option: Option) -> tuple[Any, Any]:
    """The type and the field of an option, by the name that strangers use. The option's own name
    is taken as well."""
    offered = option.offered or Offered()
    hint: Any = offered.hint or option.hint
    usual = option.default if option.start is None else option.start
    default = None if type(None) in kinds_of(hint) else usual
    names = AliasChoices(*dict.fromkeys((name, option.name)))
    text = offered.text or option.text
    return hint, Field(default, description=text, validation_alias=names)


def offering(kind: type[M]) -> type[M]:
    """The model with a field for every option that is offered."""
    fields: Any = {name: field_of(name, option) for name, option in OFFERED.items()}
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


@offering
class SearchFields(BaseModel):
    """What strangers write in the same words at every door; None: nothing."""

    model_config = STRICT
    prompt: str = Field(description="what to show", json_schema_extra={"minLength": 1})
    n: Count = Field(
        1,
        description="images to keep of those that the search finishes, best first",
    )

    @model_validator(mode="before")
    @classmethod
    def _once(cls, given: dict[str, Any]) -> dict[str, Any]:
        """FieldError for a field that is given by two of its names."""
        for field in cls.model_fields.values():
            names = [name for name in names_in(field) if name in given]
            if len(names) > 1:
                raise FieldError(names[1], f"give {' or '.join(names)}, not both")
        return given

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """From plain values by name. FieldError for a name that is none, and for a value of another
        type."""
        return build(cls, {name: value for name, value in given.items() if value is not None})

    @property
    def options(self) -> dict[str, Any]:
        """The values that are given for options, by the options' own names."""
        values = {option.name: vars(self)[name] for name, option in OFFERED.items()}
        return {name: value for name, value in values.items() if value is not None}


class LoraChoice(BaseModel):
    """A LoRA that is asked for."""

    model_config = STRICT
    name: str
    scale: Annotated[float, Interval(ge=-MOST_SCALE, le=MOST_SCALE)] | None = None
    """None: 1."""


def names_in(field: FieldInfo) -> list[str]:
    """The names that a field is taken by, where it has several."""
    also = field.validation_alias
    return list(map(str, also.choices)) if isinstance(also, AliasChoices) else []


def names_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by every name that they are taken by."""
    named = [(names_in(field) or [name], field) for name, field in kind.model_fields.items()]
    return {name: field for names, field in named for name in names}
