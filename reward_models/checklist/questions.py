"""The questions of a prompt: an item for each thing that can be seen to be there or not.

    >>> [str(item) for item in questions('two red cats left of a dog and a sign that says "OPEN"')]
    ['count: 2 cats', 'the cats are red', 'a dog', 'the cats are left of the dog', 'a sign',
     'text: OPEN']

Captions of the embedded worlds are read by these worlds' own parsers. Of others a small grammar
finds counts, colours, relations and quoted text. It leaves out actions, styles, materials, sizes,
what is excluded, and whatever has neither a number nor an article.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ttsnap.reward_models.detection import NUMBERS
from ttsnap.reward_models.ocr import quoted
from ttsnap.scenes import Group, caption
from ttsnap.scenes import Spec as Scene
from ttsnap.scenes import parse as parse_scene
from ttsnap.signs import parse as parse_sign

MOST = 8
"""Questions of a prompt; further ones are not asked."""
TEXT = "text"
COUNT = "count"
COLOURS = [
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "violet",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "grey",
    "golden",
    "silver",
    "beige",
    "turquoise",
]
NOTHING_ELSE = re.compile(r"(\d+) objects? and nothing else")
_KIND = re.compile(rf"\s*({TEXT}|{COUNT})\s*:\s*(.*\S)\s*", re.IGNORECASE | re.DOTALL)
_COUNTED = re.compile(rf"(\d{{1,2}}|{'|'.join(NUMBERS)})\s+(\S.*)", re.IGNORECASE)
_RELATIONS = (
    "to the left of|to the right of|left of|right of|on top of|in front of|next to|above|below"
    "|under|over|behind|beside|inside|on|in"
)
_PHRASE = re.compile(rf"\b(\d{{1,2}}|the|{'|'.join(NUMBERS)})\s+", re.IGNORECASE)
_BREAK = re.compile(
    r"[,.;:]|\b(?:and|with|of|to|at|that|which|who|by|is|are|has|have|says|wearing|holding"
    rf"|{_RELATIONS})\b",
    re.IGNORECASE,
)
_MEDIA = frozenset(
    ("photo", "photograph", "picture", "image", "painting", "drawing", "illustration", "render")
)
"""What a prompt calls the image itself."""
_BETWEEN = re.compile(rf"\s*(?:is |are )?({_RELATIONS})\s*", re.IGNORECASE)
_WORDS = {n: word for word, n in NUMBERS.items() if word not in ("a", "an")}


@dataclass(frozen=True)
class Item:
    """A question. ValueError for one that cannot be asked."""

    words: str
    """What is to be there, as a question to a model has it."""
    kind: str = ""
    """TEXT, where the words are to be read in the image, COUNT, or nothing."""
    needs: tuple[int, ...] = ()
    """Places in the list of what has to be there for this to be asked."""

    @classmethod
    def parse(cls, text: str) -> Item:
        """Read "two dogs", "text: OPEN" or "count: 3 apples"."""
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise ValueError(f"an item of a checklist is a line of text, got {text!r:.80}")
        if re.search("[<>]", text):
            raise ValueError(f"an item of a checklist has no < or >, got {text!r:.80}")
        found = _KIND.fullmatch(text)
        if found is None:
            return cls(" ".join(text.split()))
        kind = found[1].lower()
        words = " ".join(found[2].split())
        if kind == COUNT and _COUNTED.fullmatch(words) is None:
            raise ValueError(f"a count begins with a number, as count: 3 apples; got {text!r:.80}")
        return cls(words, kind)

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}" if self.kind else self.words

    @property
    def asked(self) -> str:
        """The words that a model is asked about."""
        if self.kind == TEXT:
            return f'the text "{self.words}"'
        found = _COUNTED.fullmatch(self.words) if self.kind == COUNT else None
        if found is None:
            return self.words
        number = found[1].lower()
        return (
            f"exactly {_WORDS.get(int(number), number) if number.isdigit() else number} {found[2]}"
        )


def questions(prompt: str) -> tuple[Item, ...]:
    """The items of a prompt, at most MOST; the prompt itself where nothing in it can be told
    apart."""
    for read in (_of_scene, _of_sign, _of_any):
        try:
            found = read(prompt)
        except ValueError:  # the prompt is of another world
            continue
        if found:
            return tuple(found[:MOST])
    return (Item(" ".join(prompt.split()) or "a picture"),)


def _of_scene(prompt: str) -> list[Item]:
    """A caption of the embedded world: its groups, their relation, the ground, and nothing else."""
    spec = parse_scene(prompt)
    items = [Item(caption(Scene((group,)))) for group in spec.groups]
    if spec.relation is not None:
        ours, theirs = spec.groups
        items.append(Item(f"{_the(ours)} {spec.relation} {_the(theirs)}", needs=(0, 1)))
    if spec.background is not None:
        items.append(Item(f"a {spec.background} background"))
    n = spec.num_objects
    return [*items, Item(f"{n} object{'s' * (n > 1)} and nothing else")]


def _the(group: Group) -> str:
    """One object of a group: "the red circle", also of several."""
    return f"the {group.noun}"


def _of_sign(prompt: str) -> list[Item]:
    """A caption of the world that writes: its word and the plate."""
    sign = parse_sign(prompt)
    return [Item(f"a {sign.ground} plate"), Item(sign.word, TEXT)]


def _of_any(prompt: str) -> list[Item]:
    """By the small grammar."""
    texts = quoted(prompt)
    plain = prompt
    for text in texts:
        plain = plain.replace(text, " " * len(text))
    items: list[Item] = []
    at: dict[str, int] = {}
    before: tuple[str, int] | None = None  # the last thing, and where its phrase ends
    for begin in _PHRASE.finditer(plain):
        rest = plain[begin.end() :]
        stop = _BREAK.search(rest)
        again = _PHRASE.search(rest)
        length = min(stop.start() if stop else len(rest), again.start() if again else len(rest))
        words = re.sub(r"[^\w\s'-]", " ", rest[:length]).split()
        colours = [word.lower() for word in words if word.lower() in COLOURS]
        thing = " ".join(word for word in words if word.lower() not in COLOURS)
        if not thing or thing.lower().split()[-1] in _MEDIA:
            continue
        if thing.lower() == "background":  # it is always there
            items += [Item(f"the background is {colour}") for colour in colours]
            continue
        if thing not in at:
            at[thing] = len(items)
            items.append(_thing(begin[1].lower(), thing))
        verb = _verb(items[at[thing]])
        items += [Item(f"the {thing} {verb} {c}", needs=(at[thing],)) for c in colours]
        joint = plain[before[1] : begin.start()] if before is not None else ""
        relation = _BETWEEN.fullmatch(joint)
        if before is not None and relation is not None:
            first = before[0]
            told = f"the {first} {_verb(items[at[first]])} {relation[1].lower()} the {thing}"
            items.append(Item(told, needs=(at[first], at[thing])))
        before = (thing, begin.end() + length)
    return items + [Item(" ".join(text.split()), TEXT) for text in texts]


def _verb(item: Item) -> str:
    return "are" if item.kind == COUNT and not item.words.startswith("1 ") else "is"


def _thing(number: str, thing: str) -> Item:
    n = 1 if number == "the" else NUMBERS.get(number) or int(number)
    if n != 1 or number in ("one", "1"):
        return Item(f"{n} {thing}", COUNT)
    return Item(f"{'the' if number == 'the' else number} {thing}")
