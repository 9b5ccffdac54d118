"""What a client sent: the fields and the pictures of a request, as JSON or as a form of either kind.

Texts come within `ServiceLimits.body_bytes`, pictures apart. How much arrives, and how fast, is
`BodyLimits`' to hold (ttsnap.reward_models.serve).
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, get_origin

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ttsnap.core.names import FieldError
from ttsnap.files.pictured import Picture
from ttsnap.files.plain_yaml import read_text
from ttsnap.files.reading import parse_json
from ttsnap.files.settings import Json, kinds_of
from ttsnap.request.fields import names_of
from ttsnap.service.limits import RequestError, ServiceLimits, stopping
from ttsnap.service.requests import Body, Edit, Video, not_taken, validated

B = TypeVar("B", bound=Body)
Pictures: TypeAlias = dict[str, Picture | tuple[Picture, ...]]
"""By argument of a pipeline's call."""
FRAME, REFERENCE = "input_reference", "image_reference"
"""The first frame of a video, as in OpenAI's API, and as vLLM-Omni has it beside."""
URL = "url"
"""A picture of an edit as the text of a form, as vLLM-Omni's clients send it; or several."""
PARTS = 40
"""Most fields of a form, and most files."""
LONGEST = 100
"""Characters of a value inside a dictionary, which may be a number."""
TEXT_BYTES, ESCAPES = 2**22, 2**18
"""Of a urlencoded form, whose escapes take a hundred bytes each, and .1 s together; base64 has one
in 32 letters."""
KINDS = JSON, MULTIPART, URLENCODED = (
    "application/json",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
)
PICTURE = re.compile(rb'"data:image\\?/[^"\\,]{1,60};base64,[A-Za-z0-9+/=\\]*+"')
BINARY: Json = {"type": "string", "format": "binary"}
FILES: dict[type[Body], tuple[str, ...]] = {Edit: ("image", "mask"), Video: (FRAME,)}
"""The files that a body comes with."""


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
    """What stands in a body. RequestError for a damaged one, and for more than the limits.

    A form by its type is JSON where it looks so: curl -d has that type for anything.
    """
    kind, _, more = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind not in KINDS:
        said = f"a body is {', '.join(KINDS)}, got {kind[:60]!r}; set Content-Type"
        raise RequestError(415, said, code="unsupported_media_type")
    if kind != MULTIPART:
        body = await request.body()
        if kind == JSON or body.lstrip().startswith(b"{"):
            return Sent(await asyncio.to_thread(_json, body, limits))
        if len(body) > TEXT_BYTES or body.count(b"%") > ESCAPES:
            said = f"a form of {len(body)} bytes; send it as multipart/form-data, pictures as files"
            raise RequestError(413, said, code="too_large")
    # Some charsets take hours to decode a megabyte, as punycode.
    elif "charset" in more.replace('"', "").replace("charset=utf-8", ""):
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
        for name in (FRAME, REFERENCE):
            if fields.get(name) == {"image_url": "the picture"}:
                return {**fields, name: _object(b'{"image_url":%b}' % picture[0])}
    said = f"a request of {len(body)} bytes; at most {most} beside the picture of {FRAME}"
    raise RequestError(413, said, code="too_large")


def _fields(texts: Iterable[tuple[str, str]], limits: ServiceLimits) -> dict[str, Any]:
    """The texts of a form by name."""
    fields: dict[str, Any] = {}
    size = 0
    for name, value in texts:
        outer, bracket, key = name.removesuffix("]").partition("[")
        if outer not in (FRAME, REFERENCE, URL):
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
    for name in (FRAME, REFERENCE):
        if isinstance(text := fields.get(name), str) and text.startswith("{"):
            # as vLLM-Omni's clients send it
            fields[name] = _json(b'{"%b":%b}' % (name.encode(), text.encode()), limits)[name]
    return fields


def _valued(kind: type[Body], name: str, value: Any) -> Any:
    """The value that a text of a form stands for, by the type of its field."""
    field = names_of(kind).get(name)
    if field is None or not isinstance(value, str):
        return value
    hint: Any = field.rebuild_annotation()
    objects = any(get_origin(each) is dict for each in kinds_of(hint))
    try:
        if objects and value.startswith("{"):
            return parse_json(value.encode(), name)
        return read_text(name, value, hint)
    except ValueError as error:
        raise RequestError(400, str(error), name, "invalid_value") from None


# --- pictures -------------------------------------------------------------------------------------


def pictures_in(
    kind: type[Body], sent: Sent, limits: ServiceLimits
) -> tuple[dict[str, Any], Pictures]:
    """The fields without pictures, and the pictures by argument of the pipeline's call. Several of
    one argument make one result together. RequestError names the parameter."""
    fields, known = dict(sent.fields), FILES.get(kind, ())
    if other := next((name for name in sent.files if name not in known), None):
        raise not_taken("file", other[:60], known)
    if issubclass(kind, Edit):
        return fields, _of_edit(fields, sent.files, limits)
    if issubclass(kind, Video):
        return fields, _of_video(fields, sent.files, limits)
    return fields, {}


def _of_edit(
    fields: dict[str, Any], files: Mapping[str, list[bytes]], limits: ServiceLimits
) -> Pictures:
    """The pictures and the mask of an edit. Those that are texts are taken out of the fields."""
    images, masks = _at_most(limits.pictures, files, "image"), _at_most(1, files, "mask")
    urls = fields.pop(URL, None) or []
    urls = urls if isinstance(urls, list) else [urls]
    _at_most(limits.pictures - len(images), {URL: urls}, URL)
    images = [*images, *(_inline(url, URL) for url in urls)]
    if not images:
        how = "send it as the file image of multipart/form-data"
        raise RequestError(400, f"an edit needs a picture: {how}", "image", "missing_parameter")
    found = _pictures(images, "image", limits)
    return arguments_of({"image": found, "mask_image": _pictures(masks, "mask", limits)})


def _of_video(
    fields: dict[str, Any], files: Mapping[str, list[bytes]], limits: ServiceLimits
) -> Pictures:
    """The first frame of a video, where it has one. A text is taken out of the fields."""
    frames = _at_most(1, files, FRAME)
    texts = {name: fields.pop(name, None) for name in (FRAME, REFERENCE)}
    given = [name for name, text in texts.items() if text is not None]
    if len(frames) + len(given) > 1:
        said = f"give one first frame, as {FRAME}"
        raise RequestError(400, said, given[-1], "invalid_value")
    frames = [*frames, *(_inline(texts[name], name) for name in given)]
    return arguments_of({"image": _pictures(frames, FRAME, limits.of_videos)})


def arguments_of(pictures: Mapping[str, tuple[Picture, ...]]) -> Pictures:
    """Arguments of the pipeline's call: one picture alone where there is one."""
    return {
        name: found if len(found) > 1 else found[0] for name, found in pictures.items() if found
    }


def _inline(reference: object, name: str) -> bytes:
    """The picture of "data:..." or {"image_url": "data:..."}. RequestError for an address, which
    nobody here connects to."""
    url = reference.get("image_url") if isinstance(reference, Mapping) else reference
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        how = "send a file, or data:image/...;base64,..."
        raise RequestError(400, f"{name} is a picture: {how}", name, "invalid_value")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise RequestError(400, f"{name} holds no base64", name, "invalid_image") from None


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
    files = FILES.get(kind, ())
    schema = kind.model_json_schema()
    schema["properties"] = {**dict.fromkeys(files, BINARY), **schema["properties"]}
    schema["required"] = [name for name in ("image", "prompt") if name in schema["properties"]]
    media = MULTIPART if files else JSON
    return {"requestBody": {"required": True, "content": {media: {"schema": schema}}}}
