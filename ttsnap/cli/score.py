"""`ttsnap score`: rank images that are there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ttsnap.cli import arguments, common
from ttsnap.cli.common import left_by_signals
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import option
from ttsnap.options.selection import SelectionOptions

DESCRIPTION = """Score the images of a folder, and write a ranked CSV and a contact sheet to another one.

The images themselves are only read: none is moved, renamed, changed or deleted. Prompts come from --prompt (one for
all), from --prompts-file (one a line, in the order of the file names), or from the images' own metadata (ttsnap's, or
the infotext that A1111 and others write).

examples:
  ttsnap score outputs/0001-two-red-circles --reward scenes
  ttsnap score photos --prompt "a cat on a red chair" --out ranked \\
      --reward pickscore aesthetics --utility rank_sum
  ttsnap score edits --source before.png --prompt "make the door red" \\
      --reward editreward
"""


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, for which prompts."""

    prompt: str | None = option(None, "one prompt for all images")
    prompts_file: str | None = option(None, "text file, one prompt a line, one line an image")
    source: str | None = option(None, "the image that all of these edit, for rewards of edits")
    recursive: bool = option(False, "look into folders inside the folder, too")
    out: str | None = option(None, "folder to write to", unset="a new one in outputs/")
    batch_size: int = option(16, "most images per reward call")


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    p.add_argument("folder", type=str, help="folder with PNG, JPEG or WebP images, or videos")
    p.add_argument("--reward", type=str, nargs="+", required=True, help=arguments.REWARD_HELP)
    arguments.add_options(p, SelectionOptions, "utility")
    arguments.add_options(p, ScoreOptions)
    arguments.add_options(p, ModelOptions, "device", "dtype")
    return p


def run(a: Arguments) -> int:
    """Score, write, and print the best."""
    from ttsnap.core import utility
    from ttsnap.results.outputs import reserved
    from ttsnap.results.rank import find_images, find_prompts, rank, write_ranking

    with left_by_signals(), reserved(a.out, "scores", False) as out:
        combine = utility.make(a.utility)
        prompts = find_prompts(find_images(Path(a.folder), a.recursive), a.prompt, a.prompts_file)
        device, dtype = common.opening().reward_placement(a.device, a.dtype)
        rewards = common.load_rewards(a.reward, device=device, dtype=dtype)
        source = Path(a.source) if a.source else None
        batch = a.batch_size
        ranked = rank(prompts, rewards, combine, source=source, batch_size=batch, device=device)
        files = write_ranking(out, ranked, [r.name for r in rewards])
    for place, entry in enumerate(ranked[:10], 1):
        error = f"  ({entry.error})" if entry.error else ""
        print(f"{place:3d}. {entry.value:.5g}  {entry.path}{error}")
    failed = sum(bool(entry.error) for entry in ranked)
    without = f", {failed} of them without a score" if failed else ""
    print(f"{len(ranked)} images ranked{without}\nwrote {' and '.join(map(str, files))}")
    return 0
