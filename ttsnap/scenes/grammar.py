"""The language of the embedded world: specifications, captions and a forgiving parser.

A caption names objects by count, colour and shape, and perhaps a spatial relation or a background.
It may name six objects; the embedded model was never seen to draw more than five right::

    a red circle                                    single
    three blue squares on a black background        count
    a red circle and a blue square                  pair
    a red circle left of a blue square              relation
    two red circles and a blue square               combo
    a red circle, a blue square and a green cross   triple
    ... and a quad names four different objects

The embedded model was trained on these kinds. Others, which it was not trained on, combine these
and are hard::

    three red circles and two blue squares                          crowd
    two red circles left of a blue square                           arrangement
    two red circles, a blue square and two green crosses            medley
    two red circles, a red cross, a blue circle and a blue cross    binding
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("above", "below", "left of", "right of")
BACKGROUNDS = ("white", "gray", "black")
KINDS = ("single", "count", "pair", "relation", "combo", "triple", "quad")
"""Kinds of caption that the embedded model was trained on."""
HARD_KINDS = KINDS[1:]
UNSEEN_KINDS = ("crowd", "arrangement", "medley", "binding")
"""Kinds of caption that no part of the embedded world was trained on; few seeds get them right."""
MAX_COUNT = 4
"""Objects in a group: the language has no word for five."""
MAX_OBJECTS = 6
"""Objects in a scene."""
MAX_TRAINED_OBJECTS = 4
"""Objects in a scene of `KINDS`, and in one with a relation."""

_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
_PLURALS = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}
_SHAPE_OF = {word: s for s in SHAPES for word in (s, _PLURALS[s])}
_COMBO_COUNTS = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3))
_UNSEEN_COUNTS = {
    "crowd": ((3, 2), (2, 3), (4, 1), (1, 4)),
    "arrangement": _COMBO_COUNTS,
    "medley": ((2, 2, 1), (2, 1, 2), (1, 2, 2), (3, 1, 1), (1, 3, 1), (1, 1, 3)),
    "binding": ((2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)),
}
_KIND_WEIGHTS = (0.20, 0.16, 0.12, 0.20, 0.14, 0.09, 0.09)
_BACKGROUND_SHARE = 0.4

WORDS: tuple[str, ...] = (
    *_NUMBERS,
    *COLORS,
    *SHAPES,
    *_PLURALS.values(),
    *("and", "above", "below", "left", "right", "of", "on", "background"),
    *BACKGROUNDS,
)
"""Every word that a caption may use; a comma and one final full stop are allowed as well."""

FORMS = """\
  one kind of object      'a red circle', 'three blue squares'
  two kinds               'a red circle and a blue square', 'two red circles and a green cross'
  a relation              'two red circles above a blue square' (above, below, left of, right of; two kinds)
  three or four kinds     'a red circle, two blue squares and a green cross' (all different; at most six objects)
  with a background       'a red circle on a black background' (white, gray, black; up to three kinds of object)"""


@dataclass(frozen=True)
class Group:
    """`count` equal objects, e.g. three blue squares."""

    count: int
    color: str
    shape: str

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"a group holds 1 to {MAX_COUNT} objects, not {self.count}")
        if self.color not in COLORS:
            raise ValueError(f"unknown color {self.color!r}; known: {', '.join(COLORS)}")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown shape {self.shape!r}; known: {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Spec:
    """What a caption asks for.

    Args:
        groups: one to four groups, no two of the same colour and shape, at most six objects
            together.
        relation: where all of the first of two groups lie as seen from all of the second, or None.
        background: 'white', 'gray' or 'black', or None where the caption does not say.
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a scene needs at least one object")
        if self.num_objects > MAX_OBJECTS:
            raise ValueError(
                f"too many objects: {self.num_objects}; a scene holds at most {MAX_OBJECTS}"
            )
        if len({(g.color, g.shape) for g in self.groups}) < len(self.groups):
            raise ValueError(
                "the same object is named twice; write its count instead, as in 'two red circles'"
            )
        if self.background is not None and self.background not in BACKGROUNDS:
            raise ValueError(
                f"unknown background {self.background!r}; known: {', '.join(BACKGROUNDS)}"
            )
        if self.relation is not None:
            if self.relation not in RELATIONS:
                raise ValueError(
                    f"unknown relation {self.relation!r}; known: {', '.join(RELATIONS)}"
                )
            if len(self.groups) != 2:
                raise ValueError(
                    "a relation joins two kinds of object, as in 'a red circle above a blue square'"
                )
            if self.num_objects > MAX_TRAINED_OBJECTS:
                raise ValueError(
                    f"a relation joins at most {MAX_TRAINED_OBJECTS} objects, not"
                    f" {self.num_objects}"
                )
        if len(self.groups) > 4:
            raise ValueError(
                f"too many kinds of object: {len(self.groups)}; a scene holds at most 4"
            )
        if len(self.groups) > 3 and self.background is not None:
            raise ValueError("four kinds of object come without a background")

    @property
    def num_objects(self) -> int:
        """How many objects the scene holds."""
        return sum(g.count for g in self.groups)

    @property
    def objects(self) -> tuple[tuple[str, str], ...]:
        """(color, shape) of each object, groups in order."""
        return tuple((g.color, g.shape) for g in self.groups for _ in range(g.count))

    @property
    def kind(self) -> str:
        """One of `KINDS` or `UNSEEN_KINDS`."""
        if self.relation is not None:
            return "relation" if self.num_objects == 2 else "arrangement"
        if len(self.groups) == 1:
            return "single" if self.num_objects == 1 else "count"
        if len(self.groups) == 2:
            if self.num_objects == 2:
                return "pair"
            if self.num_objects <= MAX_TRAINED_OBJECTS:
                return "combo"
            return "crowd"
        if self.num_objects == len(self.groups):
            return "triple" if len(self.groups) == 3 else "quad"
        alike = len({g.color for g in self.groups}) == len({g.shape for g in self.groups}) == 2
        return "binding" if alike and len(self.groups) == 4 else "medley"


def sample_spec(rng: np.random.Generator, kind: str | None = None) -> Spec:
    """A random specification, of the given kind or of a random one."""
    if kind is None:
        kind = KINDS[rng.choice(len(KINDS), p=_KIND_WEIGHTS)]
    if kind == "single":
        counts: tuple[int, ...] = (1,)
    elif kind == "count":
        counts = (int(rng.integers(2, MAX_COUNT + 1)),)
    elif kind in ("pair", "relation"):
        counts = (1, 1)
    elif kind == "combo":
        counts = _COMBO_COUNTS[rng.integers(len(_COMBO_COUNTS))]
    elif kind in ("triple", "quad"):
        counts = (1,) * (3 if kind == "triple" else 4)
    elif kind in _UNSEEN_COUNTS:
        counts = _UNSEEN_COUNTS[kind][rng.integers(len(_UNSEEN_COUNTS[kind]))]
    else:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join((*KINDS, *UNSEEN_KINDS))}")
    if kind == "binding":  # two colours times two shapes, in any order
        some = rng.choice(len(COLORS), 2, replace=False)
        forms = rng.choice(len(SHAPES), 2, replace=False)
        picks = rng.permutation((some[:, None] * len(SHAPES) + forms).ravel())
    else:
        picks = rng.choice(len(COLORS) * len(SHAPES), size=len(counts), replace=False)
    groups = tuple(
        Group(n, COLORS[p // len(SHAPES)], SHAPES[p % len(SHAPES)])
        for n, p in zip(counts, picks, strict=True)
    )
    relation = (
        RELATIONS[rng.integers(len(RELATIONS))] if kind in ("relation", "arrangement") else None
    )
    background = None
    if len(counts) < 4 and rng.random() < _BACKGROUND_SHARE:
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Spec(groups, relation, background)


def caption(spec: Spec) -> str:
    """The one canonical caption of a specification (the form the model was trained on)."""
    phrases = []
    for g in spec.groups:
        number = _COUNT_WORDS.get(g.count) or ("an" if g.color[0] in "aeiou" else "a")
        phrases.append(f"{number} {g.color} {g.shape if g.count == 1 else _PLURALS[g.shape]}")
    if spec.relation is not None:
        text = f"{phrases[0]} {spec.relation} {phrases[1]}"
    elif len(phrases) == 1:
        text = phrases[0]
    else:
        text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return text if spec.background is None else f"{text} on a {spec.background} background"


def parse(text: str) -> Spec:
    """The specification of a caption.

    Forgives case, extra spaces, 'one' for 'a', a comma before 'and' or in its place, and one final
    full stop.

    Raises:
        ValueError: for words outside `WORDS` (names them, lists the known ones), for captions
            outside the accepted forms (shows the forms) and for scenes of more than six objects.
    """
    tokens = re.findall(r"[^\s,]+|,", text.lower().strip().removesuffix("."))
    unknown = list(dict.fromkeys(t for t in tokens if t != "," and t not in WORDS))
    if unknown:
        raise ValueError(
            f"unknown word{'s' * (len(unknown) > 1)} in {text!r}:"
            f" {', '.join(map(repr, unknown))}.\nThe embedded model knows only: {', '.join(WORDS)}."
        )
    try:
        return _parse_tokens(tokens)
    except ValueError as error:
        raise ValueError(f"cannot read {text!r}: {error}.\nAccepted forms:\n{FORMS}") from None


def _parse_tokens(tokens: list[str]) -> Spec:
    """Recursive descent without the recursion: phrase (joint phrase)* [on a B background]."""
    pos = 0

    def take(what: str, allowed: Sequence[str]) -> str:
        nonlocal pos
        token = tokens[pos] if pos < len(tokens) else None
        if token is None or token not in allowed:
            raise ValueError(
                f"expected {what}, found {'the end' if token is None else repr(token)}"
            )
        pos += 1
        return token

    groups: list[Group] = []
    relation: str | None = None
    background: str | None = None
    while True:
        number = take("'a' or a number word", tuple(_NUMBERS))
        color = take("a color", COLORS)
        shape = take("a shape", tuple(_SHAPE_OF))
        count = _NUMBERS[number]
        if (shape in SHAPES) != (count == 1):
            raise ValueError(f"{number!r} does not go with {shape!r}")
        groups.append(Group(count, color, _SHAPE_OF[shape]))
        if pos == len(tokens):
            break
        joint = take(
            "',', 'and', a relation, 'on' or the end",
            (",", "and", "above", "below", "left", "right", "on"),
        )
        if joint == "on":
            take("'a'", ("a",))
            background = take("a background", BACKGROUNDS)
            take("'background'", ("background",))
            if pos < len(tokens):
                raise ValueError(f"nothing may follow the background, found {tokens[pos]!r}")
            break
        if joint == "," and tokens[pos : pos + 1] == ["and"]:
            pos += 1
        if joint in ("above", "below", "left", "right"):
            if relation is not None or len(groups) > 1:
                raise ValueError("a relation joins two kinds of object")
            if joint in ("left", "right"):
                joint = f"{joint} {take(repr('of'), ('of',))}"
            relation = joint
    return Spec(tuple(groups), relation, background)


def is_held_out(text: str) -> bool:
    """Whether a canonical caption is kept out of the training data (about one in ten, by its
    CRC-32)."""
    return zlib.crc32(text.encode()) % 10 == 7


def sample_prompts(
    n: int, seed: int, kinds: Sequence[str] = HARD_KINDS, *, held_out: bool | None = True
) -> list[str]:
    """`n` distinct captions, balanced over `kinds` (taken in turn), the same for the same
    arguments.

    Args:
        n: how many.
        seed: of the random generator.
        kinds: which kinds to draw.
        held_out: True draws only captions never trained on, False only trained ones, None either.

    Raises:
        ValueError: if a kind is unknown or has too few distinct captions.
    """
    if n < 0 or not kinds:
        raise ValueError(f"need n >= 0 and at least one kind, got {n=}, {kinds=}")
    rng = np.random.default_rng(seed)
    chosen: dict[str, None] = {}
    for i in range(n):
        kind = kinds[i % len(kinds)]
        for _ in range(20_000):
            text = caption(sample_spec(rng, kind))
            if text not in chosen and (held_out is None or is_held_out(text) == held_out):
                chosen[text] = None
                break
        else:
            raise ValueError(
                f"there are not enough distinct {kind!r} captions for {n=} with {held_out=}"
            )
    return list(chosen)
