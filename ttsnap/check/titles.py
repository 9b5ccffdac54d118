"""What figures are called on pages. Their names, by which code and files know them, are a word and
perhaps what it is of, as `lead:pruning`."""

from __future__ import annotations

TITLES = {
    # parity
    "stock": "the winner made again by the stock pipeline",
    "batch-of-1": "a batch of 1 against one of {}",
    # cost
    "evaluation": "an evaluation in a batch of {}",
    "larger-batches": "batches above {}",
    "decode": "a decode alone",
    "preview": "a preview decode alone",
    "attention": "an evaluation with {} attention",
    "search": "a search",
    "search-of": "a search of {} images",
    "evaluation-in-search": "an evaluation in it",
    "decode-in-search": "a decode in it",
    "reward-in-search": "a reward call in it",
    "share-of-decodes": "share of its decodes",
    "share-of-rewards": "share of its rewards",
    "share-of-loop": "share that is neither the model's nor a reward's",
    # signal
    "rank": "rank correlation of the {} at noise {}, {} evaluations",
    "effective-seeds": "as many independent seeds as {} are worth",
    "effective-rewards": "as many independent rewards as {} are worth",
    "gain": "gain of best-of-8 in the reward",
    "right-more": "right images more by best-of-8",
    "kept": "share kept by {}",
    "lead": "lead of {} over best-of-N of the same cost",
    "unrecorded": "{} prompts of {}",
    # the searches that are compared
    "best-of-n": "best-of-N",
    "ranking-drafts": "drafts that rank",
    "finished-drafts": "drafts that are finished",
}


def title(name: str) -> str:
    """What a figure is called on pages."""
    word, *parts = name.split(":")
    told = TITLES.get(word) or name.replace("-", " ")
    for part in parts:
        told = told.replace("{}", TITLES.get(part, part), 1)
    return told
