"""What fox.yaml asks for becomes fox.png, or fox.txt says why not: python watch_folder.py wishes
--once"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ttsnap.files.plain_yaml import parse_yaml
from ttsnap.files.reading import read_bytes
from ttsnap.files.writing import write_text
from ttsnap.pipelines import load, recommended
from ttsnap.pipelines.run import decisions_of, run
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import SearchFields, ServingCatalog, request_of
from ttsnap.request.request import prepare
from ttsnap.results.outputs import save_made

LIMITS = SearchLimits(nfe=2000, images=1)


def read(file, offer):
    given = parse_yaml(read_bytes(file, 10_000, "request").decode(), file)
    if not isinstance(given, dict):
        raise ValueError("write fields, as prompt: a red circle")
    return request_of(SearchFields.of(given), offer, LIMITS)


def answer(file, pipe, offer):
    try:
        found = run(prepare(read(file, offer), decisions_of(pipe)), pipe)
    except ValueError as error:
        write_text(file.with_suffix(".txt"), f"{error}\n")
        return
    result = found.results[0]
    save_made(file.with_suffix(".png"), result.best.pixels, found.record.of(result))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rewards", nargs="+", default=["scenes"])
    parser.add_argument("--once", action="store_true", help="end when all files have an answer")
    a = parser.parse_args()
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    offer = ServingCatalog("embedded", tuple(a.rewards), recommended)
    while True:
        files = sorted(a.folder.glob("*.yaml"))
        new = [f for f in files if not any(f.with_suffix(end).exists() for end in (".png", ".txt"))]
        for file in new:
            answer(file, pipe, offer)
        if a.once and not new:
            return
        time.sleep(0.0 if new else 1.0)


if __name__ == "__main__":
    main()
