"""The language of the world of things: a noun in place of a colour and a shape.

::

    two cats and a pizza on grass
    an owl left of a car
"""

from ttsnap.scenes.grammar import Grammar

NOUNS = {
    "apple": "apples",
    "balloon": "balloons",
    "banana": "bananas",
    "burger": "burgers",
    "butterfly": "butterflies",
    "cake": "cakes",
    "car": "cars",
    "cat": "cats",
    "dog": "dogs",
    "fish": "fish",
    "fox": "foxes",
    "frog": "frogs",
    "gift": "gifts",
    "house": "houses",
    "mushroom": "mushrooms",
    "owl": "owls",
    "panda": "pandas",
    "penguin": "penguins",
    "pig": "pigs",
    "pizza": "pizzas",
    "robot": "robots",
    "rocket": "rockets",
    "sunflower": "sunflowers",
    "tree": "trees",
}
BACKGROUNDS = ("grass", "sand", "snow")
UNSEEN_KINDS = ("crowd", "arrangement", "medley")
"""Kinds of caption that no part of this world was trained on; few seeds get them right."""
THINGS = Grammar("things", NOUNS, ("thing",), BACKGROUNDS, "on {}")
caption = THINGS.caption
parse = THINGS.parse
sample_prompts = THINGS.sample_prompts
sample_spec = THINGS.sample_spec
