"""`ttsnap evaluate-draft`: whether drafts rank the seeds of a model, from a small recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ttsnap.cli.parser import Arguments, Parser
from ttsnap.options.model import EMBEDDED
from ttsnap.options.sampler import HOT

if TYPE_CHECKING:
    from ttsnap.recordings.replay import Recording
    from ttsnap.simulation.looks import Against

HELP = "measure whether drafts rank seeds better than x0 estimates do"
DESCRIPTION = """Compare how drafts and x0 estimates rank seeds, in a recording that has scores of both.

Record about 10 prompts x 16 seeds with the drafter, at the steps and the guidance that you will use. The table has
the rank correlation (Spearman, within a prompt) of each look's scores with those of the finished images, and the
look's cost. The result is noted in draft.json of a drafter's local folder, so that `ttsnap generate` no longer warns
that the draft was not checked, and warns where the draft does not pay. The untrained drafter, hot, has no folder:
--note-in FILE.json notes the result in a file, which --draft FILE.json reads from then on.

examples:
  ttsnap record --prompts-file prompts.txt --seeds 16 --draft my_draft \\
      --looks '["draft:1@0", "draft:2@0"]' --out recordings/check
  ttsnap evaluate-draft recordings/check

  ttsnap record --prompts-file prompts.txt --seeds 16 --draft hot \\
      --out recordings/hot
  ttsnap evaluate-draft recordings/hot --note-in hot.json
  ttsnap generate "a red circle" --draft hot.json
"""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    p.add_argument("recording", type=str, metavar="RECORDING", help="a folder made by `ttsnap record --draft ...`")
    p.add_argument("--utility", type=str, default="mean", help="one number of several rewards: mean or rank_sum")
    p.add_argument("--note", type=bool, default=True, help="whether to note it in the draft.json of a local folder")
    p.add_argument(
        "--note-in", type=str | None, metavar="FILE.json", help="of the drafter hot: the file to note it in instead"
    )
    return p


def run(a: Arguments) -> int:
    """Print the table and the verdict, and note it."""
    from ttsnap.core import utility
    from ttsnap.recordings.folder import load_recording
    from ttsnap.simulation.looks import drafts_against_estimates, ranked

    recording = load_recording(a.recording)
    if not recording.draft_calls and not any(seen.look.startswith("draft") for seen in recording.looks):
        raise ValueError(f"{a.recording} holds no drafts; record with --draft FOLDER, as the help here shows")
    looks = ranked(recording, utility.make(a.utility))
    print(
        f"rank correlation (Spearman, within a prompt) with the finished images: {len(recording.prompts)} prompts x "
        f"{recording.seeds} seeds, mean and standard error over prompts\n\n"
        "     NFE   Spearman         look"
    )
    for look in looks:
        print(f"  {look.nfe:6.4g}   {look.mean:.3f} +- {look.error:.3f}   {look.seen}")
    found = drafts_against_estimates(looks)
    if not found:
        raise ValueError("there are no estimates to compare with; record without --score-steps '[...]', or with some")
    print()
    for against in found:
        print(_verdict(against))
    if a.note:
        print(_noted(recording, found, a.note_in))
    return 0


def _verdict(a: Against) -> str:
    """A sentence: what the draft ranks like, and whether it pays."""
    like = f"as well as the estimate after {a.equals:g} NFE" if a.equals < float("inf") else "better than any estimate"
    gain = f"{a.gain:+.3f} +- {a.error:.3f} over {a.rival.seen} ({a.rival.nfe:g} NFE)"
    end = "it pays to draft" if a.pays else "not surely better; record more, or leave draft out"
    return f"{a.draft.seen} ({a.draft.nfe:g} NFE) ranks {like}; {gain}: {end}"


def _noted(recording: Recording, found: list[Against], file: str | None) -> str:
    """Note what was found in the draft.json of the drafter's folder, or in a file for hot; say so, or say why not."""
    from ttsnap.sampling.drafts import DRAFT_FILE, HOT_FILE, Checked, calls_of, note_check
    from ttsnap.simulation.looks import figures_of

    figures = figures_of(recording, found)
    if not any(name.startswith("gain of ") for name in figures):
        return "not noted: there is no prompt in which both the drafts' scores and the estimates' vary; record more"
    info = recording.info
    where, model, guidance = (info.get(key) for key in ("draft", "model", "draft_guidance"))
    if not (isinstance(where, str) and isinstance(model, str) and isinstance(guidance, int | float)):
        return "not noted: the recording does not say which drafter, model and guidance it was made with"
    check = Checked(model, recording.grid.steps, float(guidance), figures)
    at = f"for {model}, {recording.grid.steps} steps, guidance {guidance:g}"
    name = calls_of(where)[0]
    if name == HOT or name.endswith(HOT_FILE):
        noted = Path(file or name).expanduser()
        if not noted.name.endswith(HOT_FILE):
            return "not noted: hot has no folder; with --note-in hot.json it is, and --draft hot.json knows of it"
        if file is None and not noted.is_file():
            return f"not noted: there is no file {noted}; --note-in FILE.json makes one"
        note_check(noted, check)
        return f"noted in {noted} {at}; use it with --draft {noted}"
    if file is not None:
        raise ValueError(f"--note-in is for the drafter hot; {where} is noted in its own {DRAFT_FILE}")
    folder = Path(name).expanduser()
    folder = folder.parent if folder.is_file() else folder
    # A recording may name any folder: it must be a drafter's, its own or that of a pipeline.
    weights = (DRAFT_FILE, "*.safetensors", "*/*.safetensors")
    if name == EMBEDDED or not any(any(folder.glob(pattern)) for pattern in weights):
        return f"not noted: {where} is no local folder of a drafter"
    note_check(folder, check)
    return f"noted in {folder / DRAFT_FILE} {at}"
