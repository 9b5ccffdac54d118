"""Prompt sets as their authors publish them: each is told apart by what it holds, and what is none
is refused."""

from __future__ import annotations

import json
import os

import pytest

from ttsnap.bench.layout import category
from ttsnap.bench.prompts import read_prompt_set

GENEVAL = [  # as evaluation_metadata.jsonl has them
    {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    },
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}],
        "exclude": [],
        "prompt": "a dog right of a teddy",
    },
]
DPG = (
    'item_id,text,keywords,proposition_id\n3,"A ladder, old",x,1\n3,"A ladder, old",x,2\n10,"A'
    ' ""cat""",y,1\n'
)
PARTI = (
    'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\n"G I G" painted, in'
    " red\tArts\tWriting & Symbols\t\n"
)

SETS = [
    (
        "a.txt",
        "# ours\na red cup, text\n\n[a|b] {c}\r\n  two cups \n",
        "text, a prompt a line",
        [("a red cup, text", ""), ("[a|b] {c}", ""), ("two cups", "")],
    ),
    (
        "geneval.jsonl",
        "\n".join(map(json.dumps, GENEVAL)),
        "JSON Lines",
        [("a photo of a bench", "single_object"), ("a dog right of a teddy", "position")],
    ),
    (
        "geneval2.data",
        json.dumps({"prompt": "four cows", "atom_count": 2, "vqa_list": [["How many?", "four"]]}),
        "JSON Lines",
        [("four cows", "")],
    ),
    (
        "anime.json",
        '["a girl", "a boy\u2028here"]',
        "JSON",
        [("a girl", ""), ("a boy\u2028here", "")],
    ),
    (
        "vbench",
        '[\n {"prompt_en": "a red car", "dimension": ["color"], "tag": "car"}\n]',
        "JSON",
        [("a red car", "car")],
    ),
    (
        "by_id.json",
        '{"7": "a cup", "9": {"text": "a pot", "tag": "t"}}',
        "JSON",
        [("a cup", ""), ("a pot", "t")],
    ),
    (
        "by_style.json",
        '{"anime": ["a girl"], "photo": ["a cup", {"caption": "a pot"}]}',
        "JSON",
        [("a girl", "anime"), ("a cup", "photo"), ("a pot", "photo")],
    ),
    (
        "drawbench.csv",
        '\ufeffPrompts,Category\r\nA red car.,Colors\r\n"One ""cat"", two",Counting\r\n',
        "a table with a header",
        [("A red car.", "Colors"), ('One "cat", two', "Counting")],
    ),
    ("quoted.csv", '"prompt","tag"\n"a cup","x"\n', "a table with a header", [("a cup", "x")]),
    ("one.csv", "prompt\na cup\n", "a table with a header", [("a cup", "")]),
    (
        "PartiPrompts.tsv",
        PARTI,
        "a table with a header",
        [("bond", "Abstract"), ('"G I G" painted, in red', "Arts")],
    ),
    ("dpg_bench.csv", DPG, "a table with a header", [("A ladder, old", ""), ('A "cat"', "")]),
]


@pytest.mark.parametrize(("name", "text", "kind", "prompts"), SETS, ids=[name for name, *_ in SETS])
def test_a_set_is_told_by_what_it_holds(name, text, kind, prompts, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    found = read_prompt_set(tmp_path / name)
    assert found.kind == kind
    assert [(prompt.text, category(prompt.metadata)) for prompt in found.prompts] == prompts
    assert [prompt.index for prompt in found.prompts] == list(range(len(prompts)))


def test_what_a_set_says_is_kept_and_folders_hold_a_prompt_a_file_or_a_line(tmp_path):
    for name, text in {"10": "ten\n", "9": "nine", "COCO2": "two"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "README.md").write_text("no prompt")
    found = read_prompt_set(tmp_path)
    assert [(p.text, p.metadata["id"]) for p in found.prompts] == [
        ("nine", "9"),
        ("ten", "10"),
        ("two", "COCO2"),
    ]
    (tmp_path / "COCO2.txt").write_text("two\nthree\n")
    assert [category(p.metadata) for p in read_prompt_set(tmp_path).prompts] == [
        "9",
        "10",
        "COCO2",
        "COCO2",
    ]
    (tmp_path / "g").write_text("\n".join(map(json.dumps, GENEVAL)))
    assert [prompt.metadata for prompt in read_prompt_set(tmp_path / "g").prompts] == GENEVAL
    (tmp_path / "p").write_text(PARTI)
    first = {"prompt": "bond", "Category": "Abstract", "Challenge": "Basic", "Note": ""}
    assert read_prompt_set(tmp_path / "p").prompts[0].metadata == first


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "empty.txt",
            b"\n# nothing\n",
            "holds no prompt; a prompt set is text with a prompt a line, JSON Lines",
        ),
        ("picture.png", b"\x89PNG\r\n", "is no text in UTF-8"),
        ("zeros.txt", b"a\0b", "is no text"),
        (
            "list.json",
            b'[{"name": "x"}]',
            "entry 1 of .* has no prompt: none of prompt, prompts, prompt_en, text",
        ),
        ("list.json", b"[3]", "entry 1 of .* is neither a prompt nor an object with one: 3"),
        ("number.json", b"3", "holds '3' and no prompts"),
        ("words.json", b"a cup", "list|words.json is damaged"),
        ("lines.jsonl", b'{"prompt": "a"}\n{"prompt": 3}', "line 2 of .* has no prompt"),
        ("lines.jsonl", b'{"prompt": "a"}\n{"prompt": ', "line 2 of .* is damaged"),
        ("twice.jsonl", b'{"prompt": "a", "prompt": "b"}', "stands twice"),
        (
            "table.csv",
            b"name,score\na,1\n",
            "starts with 'name,score', which is no CSV with prompts; .* caption",
        ),
        ("table.tsv", b"prompt\ttag\na\n", "row 1 of .* has 1 cells, its header 2"),
        ("blank.json", b'["a", " "]', "prompt 2 of .* is empty"),
        ("", None, "holds no prompt"),
        ("gone.txt", None, "such prompt set"),
    ],
)
def test_what_is_no_prompt_set_is_refused(name, data, said, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=said):
        read_prompt_set(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"a\n" * 200_001, r"at most 100,000 are run as one benchmark"),
        (
            "a.txt",
            b"\n" * 1_000_001,
            r"holds 1,000,001 lines, lists and objects; at most 1,000,000 are read",
        ),
        (
            "a.json",
            b"[" + b"[]," * 1_000_000 + b"[]]",
            r"lists and objects; at most 1,000,000 are read",
        ),
        (
            "a.json",
            b"[" + b"{}," * 1_000_000 + b"{}]",
            r"lists and objects; at most 1,000,000 are read",
        ),
        (
            "a.txt",
            b"a" * (2**24 + 1),
            r"is too large: at most 16,777,216 bytes are read of a prompt set",
        ),
        ("a.tsv", b"prompt" + b"\ta" * 40_000 + b"\n", r"which is no TSV with prompts"),
    ],
    ids=["prompts", "lines", "lists", "objects", "bytes", "columns"],
)
def test_what_would_fill_the_memory_is_not_read(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    folder = [tmp_path] if name == "a.txt" and "benchmark" not in said else []
    for path in (tmp_path / name, *folder):
        with pytest.raises(ValueError, match=said):
            read_prompt_set(path)


def test_a_folder_is_bounded_as_a_file_is_and_holds_its_own_texts(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.txt").write_bytes(b"a" * 2**23 + b"b" * i)
    with pytest.raises(ValueError, match=r"1\.txt"):
        read_prompt_set(folder)
    (tmp_path / "key").write_text("secret")
    (folder / "0.txt").write_text("a cup")
    (folder / "1.txt").unlink()
    (folder / "1.txt").symlink_to(tmp_path / "key")
    with pytest.raises(ValueError, match=r"1\.txt"):
        read_prompt_set(folder)
    (folder / "1.txt").unlink()
    (folder / "1.txt").symlink_to(folder / "0.txt")
    (folder / "2.txt").symlink_to(folder / "2.txt")
    os.mkfifo(folder / "3.txt")
    (folder / "4.txt").symlink_to("/dev/zero")
    assert [prompt.text for prompt in read_prompt_set(folder).prompts] == ["a cup", "a cup"]


def test_the_kind_of_a_prompt_is_a_word():
    assert [category(m) for m in ({"Category": "Arts", "tag": "x"}, {"tag": 3}, {})] == [
        "Arts",
        "",
        "",
    ]
