"""What a command said on stderr, in tests of the command line."""

from __future__ import annotations

import re

LOADED = re.compile(r"\A(loading [^\n]* [\d.]+ s\n|loading [^\n]* \.\.\.\nloaded in [\d.]+ s\n)*")


def error_of(capsys):
    """Its error, without the lines before it about what was loaded until then."""
    return LOADED.sub("", capsys.readouterr().err)
