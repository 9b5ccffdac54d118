"""Languages of the embedded worlds: specifications, captions and a forgiving parser.

A caption names things by count and noun, and perhaps a spatial relation or a background. It may
name six things; no embedded model was seen to draw more than five right::

    a red circle                                    single
    three blue squares on a black background        count
    a red circle and a blue square                  pair
    a red circle left of a blue square              relation
    two red circles and a blue square               combo
    a red circle, a blue square and a green cross   triple
    ... and a quad names four different things

The embedded models were trained on these kinds. Others, which they were not trained on, combine
these and are hard::

    three red circles and two blue squares                          crowd
    two red circles left of a blue square                           arrangement
    two red circles, a blue square and two green crosses            medley
    two red circles, a red cross, a blue circle and a blue cross    binding

Here is the language itself and that of the flat scenes, whose nouns are a colour and a shape;
`ttsnap.things` has nouns of its own.
"""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

RELATIONS = ("above", "below", "left of", "right of")
KINDS = ("single", "count", "pair", "relation", "combo", "triple", "quad")
"""Kinds of caption that the embedded models were trained on."""
HARD_KINDS = KINDS[1:]
UNSEEN_KINDS = ("crowd", "arrangement", "medley", "binding")
"""Kinds of caption that no part of an embedded world was trained on; few seeds get them right."""
MAX_COUNT = 4
"""Things in a group: the languages have no word for five."""
MAX_OBJECTS = 6
"""Things in a scene."""
MAX_TRAINED_OBJECTS = 4
"""Things in a scene of `KINDS`, and in one with a relation."""

_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
_COMBO_COUNTS = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3))
_UNSEEN_COUNTS = {
    "crowd": ((3, 2), (2, 3), (4, 1), (1, 4)),
    "arrangement": _COMBO_COUNTS,
    "medley": ((2, 2, 1), (2, 1, 2), (1, 2, 2), (3, 1, 1), (1, 3, 1), (1, 1, 3)),
    "binding": ((2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)),
}
_KIND_WEIGHTS = (0.20, 0.16, 0.12, 0.20, 0.14, 0.09, 0.09)
_BACKGROUND_SHARE = 0.4


@dataclass(frozen=True)
class Group:
    """`count` equal things, e.g. three blue squares. noun: in the singular, "blue square"."""

    count: int
    noun: str

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"a group holds 1 to {MAX_COUNT} objects, not {self.count}")


@dataclass(frozen=True)
class Spec:
    """What a caption asks for.

    Args:
        groups: one to four groups, no two of the same noun, at most six things together.
        relation: where all of the first of two groups lie as seen from all of the second, or None.
        background: one of the language's, or None where the caption does not say.
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
        if len({group.noun for group in self.groups}) < len(self.groups):
            raise ValueError(
                "the same object is named twice; write its count instead, as in"
                f" '{_COUNT_WORDS[2]} ...'"
            )
        if self.relation is not None:
            if self.relation not in RELATIONS:
                raise ValueError(
                    f"unknown relation {self.relation!r}; known: {', '.join(RELATIONS)}"
                )
            if len(self.groups) != 2:
                raise ValueError("a relation joins two kinds of object, as in 'a cat above a dog'")
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
        """How many things the scene holds."""
        return sum(group.count for group in self.groups)

    @property
    def objects(self) -> tuple[str, ...]:
        """The noun of each thing, groups in order."""
        return tuple(group.noun for group in self.groups for _ in range(group.count))

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
        # two first words and two last words in four nouns
        columns = _columns(group.noun for group in self.groups)
        alike = [len(set(column)) for column in columns] == [2, 2]
        return "binding" if alike and len(self.groups) == 4 else "medley"


@dataclass(frozen=True)
class Grammar:
    """A language of captions.

    Args:
        model: the name of the model that speaks it, for messages.
        nouns: plural by singular; where nouns have two words, all pairs of them in order.
        parts: what the words of a noun are, for messages: "color", "shape".
        backgrounds: names of backgrounds.
        ground: how a caption names one: "on a {} background".
    """

    model: str
    nouns: Mapping[str, str]
    parts: tuple[str, ...]
    backgrounds: tuple[str, ...]
    ground: str

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word that a caption may use; a comma and a final full stop are allowed as well."""
        singulars = [word for column in _columns(self.nouns) for word in column]
        plurals = [word for column in _columns(self.nouns.values()) for word in column]
        relations = ("above", "below", "left", "right", "of")
        ground = self.ground.replace("{}", "").split()
        words = (*_NUMBERS, *singulars, *plurals, "and", *relations, *ground, *self.backgrounds)
        return tuple(dict.fromkeys(words))

    @property
    def forms(self) -> str:
        """The accepted forms of a caption, by examples."""
        nouns = list(self.nouns.items())
        # of the scenes: a red circle, blue squares, a green cross
        a, many_a = nouns[0]
        b, many_b = nouns[9]
        c = nouns[7][0]
        on = self.ground.format(self.backgrounds[-1])
        return f"""\
  one kind of object      '{_a(a)}', 'three {many_b}'
  two kinds               '{_a(a)} and {_a(b)}', 'two {many_a} and {_a(c)}'
  a relation              'two {many_a} above {_a(b)}' (above, below, left of, right of; two kinds)
  three or four kinds     '{_a(a)}, two {many_b} and {_a(c)}' (all different; at most six objects)
  with a background       '{_a(a)} {on}' ({", ".join(self.backgrounds)}; up to three kinds of object)"""

    def sample_spec(self, rng: np.random.Generator, kind: str | None = None) -> Spec:
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
        elif kind in _UNSEEN_COUNTS and (kind != "binding" or len(self.parts) == 2):
            counts = _UNSEEN_COUNTS[kind][rng.integers(len(_UNSEEN_COUNTS[kind]))]
        else:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join((*KINDS, *UNSEEN_KINDS))}")
        nouns = tuple(self.nouns)
        if kind == "binding":  # two first words times two second words, in any order
            firsts, seconds = (len(set(column)) for column in _columns(nouns))
            some = rng.choice(firsts, 2, replace=False)
            forms = rng.choice(seconds, 2, replace=False)
            picks = rng.permutation((some[:, None] * seconds + forms).ravel())
        else:
            picks = rng.choice(len(nouns), size=len(counts), replace=False)
        groups = tuple(Group(n, nouns[p]) for n, p in zip(counts, picks, strict=True))
        relation = (
            RELATIONS[rng.integers(len(RELATIONS))] if kind in ("relation", "arrangement") else None
        )
        background = None
        if len(counts) < 4 and rng.random() < _BACKGROUND_SHARE:
            background = self.backgrounds[rng.integers(len(self.backgrounds))]
        return Spec(groups, relation, background)

    def caption(self, spec: Spec) -> str:
        """The one canonical caption of a specification (the form the model was trained on)."""
        phrases = [
            f"{_COUNT_WORDS[group.count]} {self.nouns[group.noun]}"
            if group.count > 1
            else _a(group.noun)
            for group in spec.groups
        ]
        if spec.relation is not None:
            text = f"{phrases[0]} {spec.relation} {phrases[1]}"
        elif len(phrases) == 1:
            text = phrases[0]
        else:
            text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        if spec.background is None:
            return text
        return f"{text} {self.ground.format(spec.background)}"

    def parse(self, text: str) -> Spec:
        """The specification of a caption.

        Forgives case, extra spaces, 'one' for 'a', a comma before 'and' or in its place, and one
        final full stop.

        Raises:
            ValueError: for words outside `words` (names them, lists the known ones), for captions
                outside the accepted forms (shows the forms) and for scenes of more than six things.
        """
        tokens = re.findall(r"[^\s,]+|,", text.lower().strip().removesuffix("."))
        unknown = list(dict.fromkeys(t for t in tokens if t != "," and t not in self.words))
        if unknown:
            raise ValueError(
                f"unknown word{'s' * (len(unknown) > 1)} in {text!r}:"
                f" {', '.join(map(repr, unknown))}.\nThe model {self.model} knows only:"
                f" {', '.join(self.words)}."
            )
        try:
            return self._parse_tokens(tokens)
        except ValueError as error:
            raise ValueError(
                f"cannot read {text!r}: {error}.\nAccepted forms:\n{self.forms}"
            ) from None

    def _parse_tokens(self, tokens: list[str]) -> Spec:
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
            count = _NUMBERS[number]
            forms = (*self.nouns, *self.nouns.values())
            named = ""
            for column in _columns(forms):
                named = f"{named} {take('a ' + self.parts[len(named.split())], column)}".strip()
            noun = self._singulars.get((named, count == 1))
            if noun is None:
                raise ValueError(f"{number!r} does not go with {named!r}")
            groups.append(Group(count, noun))
            if pos == len(tokens):
                break
            joint = take(
                "',', 'and', a relation, 'on' or the end",
                (",", "and", "above", "below", "left", "right", "on"),
            )
            if joint == "on":
                before, after = self.ground.removeprefix("on").split("{}")
                for word in before.split():
                    take(repr(word), (word,))
                background = take("a background", self.backgrounds)
                for word in after.split():
                    take(repr(word), (word,))
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

    @cached_property
    def _singulars(self) -> dict[tuple[str, bool], str]:
        """The noun of a form, by (form, whether it is meant in the singular)."""
        forms = {(one, True): one for one in self.nouns}
        return forms | {(many, False): one for one, many in self.nouns.items()}

    def sample_prompts(
        self,
        n: int,
        seed: int,
        kinds: Sequence[str] = HARD_KINDS,
        *,
        held_out: bool | None = True,
    ) -> list[str]:
        """`n` distinct captions, balanced over `kinds` (taken in turn), the same for the same
        arguments.

        Args:
            n: how many.
            seed: of the random generator.
            kinds: which kinds to draw.
            held_out: True draws only captions never trained on, False only trained ones, None
                either.

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
                text = self.caption(self.sample_spec(rng, kind))
                if text not in chosen and (held_out is None or is_held_out(text) == held_out):
                    chosen[text] = None
                    break
            else:
                raise ValueError(
                    f"there are not enough distinct {kind!r} captions for {n=} with {held_out=}"
                )
        return list(chosen)


def is_held_out(text: str) -> bool:
    """Whether a canonical caption is kept out of the training data (about one in ten, by its
    CRC-32)."""
    return zlib.crc32(text.encode()) % 10 == 7


def _columns(nouns: Iterable[str]) -> list[tuple[str, ...]]:
    """The first words of all nouns, their second words, and so on."""
    return list(zip(*map(str.split, nouns), strict=True))


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")
BACKGROUNDS = ("white", "gray", "black")
_PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
SCENES = Grammar(
    "embedded",
    {
        f"{color} {shape}": f"{color} {plural}"
        for color in COLORS
        for shape, plural in _PLURALS.items()
    },
    ("color", "shape"),
    BACKGROUNDS,
    "on a {} background",
)
"""The language of the flat scenes."""
WORDS = SCENES.words
caption = SCENES.caption
parse = SCENES.parse
sample_prompts = SCENES.sample_prompts
sample_spec = SCENES.sample_spec
