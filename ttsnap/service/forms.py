"""What a client sent: the fields and the pictures of a request, as JSON or as a form.

Texts come within `ServiceLimits.body_bytes`, pictures apart. How much arrives, and how fast, is
`BodyLimits`' to hold (ttsnap.reward_models.serve).
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ttsnap.core.names import FieldError
from ttsnap.files.pictured import Picture
from ttsnap.files.plain_yaml import read_text
from ttsnap.files.reading import parse_json
from ttsnap.files.settings import Json
from ttsnap.request.offer import names_of
from ttsnap.service.limits import RequestError, ServiceLimits, stopping
from ttsnap.service.requests import FRAME, Body, Edit, Video, not_taken, validated

B = TypeVar("B", bound=Body)
Pictures: TypeAlias = dict[str, Picture | tuple[Picture, ...]]
"""By argument of a pipeline's call."""
PARTS = 40
"""Most fields of a form, and most files."""
LONGEST = 100
"""Characters of a value inside a dictionary, which may be a number."""
JSON = "application/json"
MULTIPART = "multipart/form-data"
CURL = "application/x-www-form-urlencoded"
"""The type that curl -d gives to JSON, too."""
PICTURE = re.compile(rb'"data:image\\?/[^"\\,]{1,60};base64,[A-Za-z0-9+/=\\]*+"')
BINARY: Json = {"type": "string", "format": "binary"}


@dataclass(frozen=True)
class Sent:
    """What a client sent."""

    fields: dict[str, Any]
    """By name. Of a form: texts, a list of those of NAME[], a dictionary of those of NAME[KEY]."""
    files: dict[str, list[bytes]] = field(default_factory=dict)
    form: bool = False
    """Whether texts may stand for other values."""


async def body_in(kind: type[B], request: Request, limits: ServiceLimits) -> tuple[B, Pictures]:
    """The body of a request, and its pictures: files, or data: URLs. RequestError names the
    parameter."""
    try:
        sent = await sent_in(request, limits)
        # Decoding on the event loop would hold up all clients.
        fields, pictures = await asyncio.to_thread(pictures_in, kind, sent, limits)
    except asyncio.CancelledError:  # by uvicorn at the end of its time
        raise stopping() from None
    finally:
        request.state.let_go()
    fields = _spread(fields)
    # OpenAI's client has the seconds of a video as a text in JSON, too.
    if sent.form or kind is Video:
        fields = {name: _valued(kind, name, value) for name, value in fields.items()}
    return validated(kind, fields), pictures


def _spread(fields: dict[str, Any]) -> dict[str, Any]:
    """What Hugging Face's InferenceClient sends, in our fields; others as they are."""
    if "inputs" not in fields:
        return fields
    own = {"response_format": "file", "prompt": fields["inputs"]}
    more = fields.get("parameters") or {}
    if not isinstance(more, dict) or fields.keys() - {"inputs", "parameters"}:
        said = "beside inputs a request has parameters, an object with all other fields"
        raise RequestError(400, said, "parameters", "invalid_value")
    return {**more, **own}


async def sent_in(request: Request, limits: ServiceLimits) -> Sent:
    """What stands in a body. RequestError for a damaged one, and for more than the limits."""
    kind, _, more = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind == CURL and (await request.body()).lstrip().startswith(b"{"):
        kind = JSON
    if kind == JSON:
        return Sent(await asyncio.to_thread(_json, await request.body(), limits))
    if kind != MULTIPART:
        said = f"a body is {JSON} or {MULTIPART}, got {kind[:60]!r}; set Content-Type"
        raise RequestError(415, said, code="unsupported_media_type")
    # Some charsets take hours to decode a megabyte, as punycode.
    if "charset" in more.replace('"', "").replace("charset=utf-8", ""):
        raise _unreadable("its text must be UTF-8; leave charset out")
    form = await _form(request, limits.form_bytes)
    texts = [(name, value) for name, value in form if isinstance(value, str)]
    if any("\ufffd" in text for _, text in texts):
        raise _unreadable("a text is no UTF-8")
    files: dict[str, list[bytes]] = {}
    for name, value in form:
        if isinstance(value, bytes):
            files.setdefault(name.removesuffix("[]"), []).append(value)
    return Sent(await asyncio.to_thread(_fields, texts, limits), files, form=True)


async def _form(request: Request, most: int) -> list[tuple[str, str | bytes]]:
    """The texts and the files of a form, in their order. most: bytes of a text."""
    try:
        async with request.form(max_files=PARTS, max_fields=PARTS, max_part_size=most) as form:
            return [
                (name, await value.read() if isinstance(value, UploadFile) else value)
                for name, value in form.multi_items()
            ]
    except HTTPException as refused:
        raise _unreadable(refused.detail) if refused.status_code == 400 else refused from None


def _unreadable(why: str) -> RequestError:
    return RequestError(400, f"the form cannot be read: {why}", code="invalid_form")


def _object(data: bytes) -> dict[str, Any]:
    """The object in JSON. RequestError for anything else."""
    try:
        found = parse_json(data, "the request")
    except ValueError as error:
        raise RequestError(400, str(error), code="invalid_json") from None
    if not isinstance(found, dict):
        said = f"the request must be a JSON object, got {str(found)[:60]}"
        raise RequestError(400, said, code="invalid_json")
    return found


def _json(body: bytes, limits: ServiceLimits) -> dict[str, Any]:
    """The object in a JSON body, which may be large by a first frame alone: Python needs 35 times
    the bytes of other JSON."""
    most = limits.body_bytes
    if len(body) <= most:
        return _object(body)
    pictures = PICTURE.finditer(body)
    picture = max(pictures, key=lambda found: found.end() - found.start(), default=None)
    if picture is not None and len(body) - len(picture[0]) <= most:
        fields = _object(body[: picture.start()] + b'"the picture"' + body[picture.end() :])
        if fields.get(FRAME) == {"image_url": "the picture"}:
            return {**fields, FRAME: _object(b'{"image_url":%b}' % picture[0])}
    said = f"a request of {len(body)} bytes; at most {most} beside the picture of {FRAME}"
    raise RequestError(413, said, code="too_large")


def _fields(texts: Iterable[tuple[str, str]], limits: ServiceLimits) -> dict[str, Any]:
    """The texts of a form by name."""
    fields: dict[str, Any] = {}
    size = 0
    for name, value in texts:
        outer, bracket, key = name.removesuffix("]").partition("[")
        if outer != FRAME:
            size += len(value)
        inside = fields.setdefault(outer, {} if key else []) if bracket else None
        # of options, as {"name": "svdd", "streams": 3}, or a long address
        if isinstance(inside, dict) and key:
            inside[key] = read_text(key, value, Any) if len(value) <= LONGEST else value
        elif isinstance(inside, list) and not key:
            inside.append(value)
        else:
            fields[name] = value
    if size > limits.body_bytes:
        said = f"texts of a form are above their maximum size of {limits.body_bytes} bytes together"
        raise RequestError(413, said, code="too_large")
    return fields


def _valued(kind: type[Body], name: str, value: Any) -> Any:
    """The value that a text of a form stands for, by the type of its field."""
    field = names_of(kind).get(name)
    if field is None or not isinstance(value, str):
        return value
    hint: Any = field.rebuild_annotation()
    try:
        return read_text(name, value, hint)
    except ValueError as error:
        raise RequestError(400, str(error), name, "invalid_value") from None


# --- pictures -------------------------------------------------------------------------------------


def pictures_in(
    kind: type[Body], sent: Sent, limits: ServiceLimits
) -> tuple[dict[str, Any], Pictures]:
    """The fields without pictures, and the pictures by argument of the pipeline's call. Several of
    one argument make one result together. RequestError names the parameter."""
    fields = dict(sent.fields)
    for name in sent.files:
        if name not in kind.files:
            raise not_taken("file", name[:60], kind.files)
    if issubclass(kind, Edit):
        return fields, _of_edit(sent.files, limits)
    if issubclass(kind, Video):
        return fields, _of_video(fields, sent.files, limits)
    return fields, {}


def _of_edit(files: Mapping[str, list[bytes]], limits: ServiceLimits) -> Pictures:
    """The pictures and the mask of an edit."""
    images = _at_most(limits.pictures, files, "image")
    masks = _at_most(1, files, "mask")
    if not images:
        how = "send it as the file image of multipart/form-data"
        raise RequestError(400, f"an edit needs a picture: {how}", "image", "missing_parameter")
    pictures = _pictures(images, "image", limits)
    return arguments_of({"image": pictures, "mask_image": _pictures(masks, "mask", limits)})


def _of_video(
    fields: dict[str, Any], files: Mapping[str, list[bytes]], limits: ServiceLimits
) -> Pictures:
    """The first frame of a video, where it has one. A text is taken out of the fields."""
    frames = _at_most(1, files, FRAME)
    reference = fields.pop(FRAME, None)
    if reference is not None:
        if frames:
            raise RequestError(400, f"give one {FRAME}", FRAME, "invalid_value")
        frames = [_inline(reference)]
    return arguments_of({"image": _pictures(frames, FRAME, limits.of_videos)})


def arguments_of(pictures: Mapping[str, tuple[Picture, ...]]) -> Pictures:
    """Arguments of the pipeline's call: one picture alone where there is one."""
    return {
        name: found if len(found) > 1 else found[0] for name, found in pictures.items() if found
    }


def _inline(reference: object) -> bytes:
    """The picture of {"image_url": "data:..."}. RequestError for an address, which nobody here
    connects to."""
    url = reference.get("image_url") if isinstance(reference, Mapping) else None
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        how = 'send a file, or {"image_url": "data:image/...;base64,..."}'
        raise RequestError(400, f"{FRAME} is a picture: {how}", FRAME, "invalid_value")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise RequestError(400, f"{FRAME} holds no base64", FRAME, "invalid_image") from None


def _pictures(files: Sequence[bytes], field: str, limits: ServiceLimits) -> tuple[Picture, ...]:
    """RequestError for bytes of no picture, and for a large picture, before it is decoded."""
    try:
        return tuple(limits.picture(data, field, mask=field == "mask") for data in files)
    except FieldError as error:
        raise RequestError.of(error) from None
    except ValueError as error:
        raise RequestError(400, str(error), field, "invalid_image") from None


def _at_most(most: int, files: Mapping[str, Any], name: str) -> list[Any]:
    """The files of a name, in their order. RequestError for more."""
    found: list[Any] = files.get(name, [])
    if len(found) > most:
        said = f"a request has at most {most} {name}, got {len(found)}"
        raise RequestError(400, said, name, "invalid_value")
    return found


# --- documentation --------------------------------------------------------------------------------


def body_schema(kind: type[Body]) -> dict[str, Any]:
    """The documentation of a body, with its files."""
    files = kind.files
    schema = kind.model_json_schema()
    schema["properties"] = {**dict.fromkeys(files, BINARY), **schema["properties"]}
    schema["required"] = [name for name in ("image", "prompt") if name in schema["properties"]]
    media = MULTIPART if files else JSON
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}
