"""The cluster of the how-to is one that Ray accepts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_picture_of_a_cluster_is_what_its_script_draws() -> None:
    script = ROOT / "scripts" / "draw_cluster.py"
    checked = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_ray_accepts_the_cluster_of_the_how_to() -> None:
    yaml = pytest.importorskip("yaml")
    ray, jsonschema = pytest.importorskip("ray"), pytest.importorskip("jsonschema")
    text = (ROOT / "docs" / "howto" / "cluster.md").read_text(encoding="utf-8")
    cluster = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    # Ray's own schema of such files, which `ray up` checks them by.
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "available_node_types": 3}, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
