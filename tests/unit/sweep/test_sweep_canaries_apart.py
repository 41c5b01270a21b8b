"""Canaries of launches that were made apart are held against the first configuration's afterwards."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from qwenbench.runfolder.files import write_json
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.text_checks import canaries_beside_the_first
from qwenbench.workload.canary import canary_questions, grade


def test_each_is_held_against_the_first_that_was_asked(tmp_path: Path) -> None:
    paths, questions = RunPaths(tmp_path), canary_questions()
    right = [question.accept[0] for question in questions]
    for config_id, answers in (("b", right), ("c", [*right[:-8], *["nonsense"] * 8])):
        paths.server(config_id).mkdir(parents=True)
        write_json(paths.server(config_id) / "canary.json", asdict(grade(answers)) | {"agreement_with_first": None})
    told = list(canaries_beside_the_first(paths, ["a", "b", "c"]))
    assert told == ["c: canary answers 75% as the first configuration"]
    kept = {name: json.loads((paths.server(name) / "canary.json").read_text()) for name in ("b", "c")}
    assert [kept[name]["agreement_with_first"] for name in ("b", "c")] == [None, 0.75]
