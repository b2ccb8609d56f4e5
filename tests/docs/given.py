"""What the pages leave to their reader, made up, under their names: benchmarks, traces, weights, replies."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from orca_jax.experiments import convert
from orca_jax.queries import puzzles
from tests.docs import pages

FAMILIES = ("boolean_expressions", "dyck_languages", "navigate", "object_counting")
# Runs of other pages; of some no more than what is made before the parts that are named here.
MADE = ("evaluation", "training", "tokens", "tokenizer", "quality", "cards")
RUNS = {
    **dict.fromkeys(("main", "mini", "openorca", "orca", "expert_only", "smollm2"), ()),
    **{"prepared": MADE[:2], "asked": MADE, "filtered": MADE},
}


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def benchmarks(folder: Path) -> None:
    """Files of the sizes that are known: four tasks of BBH, one of AGIEval, TruthfulQA, Vicuna's prompts."""
    for family in FAMILIES:
        made = puzzles.make_puzzles(family, difficulties=(2, 3), count=250, seed=99, split="test")
        examples = [{"input": puzzle.question, "target": puzzle.target} for puzzle in made]
        for name in ("bbh", "BBH_FOLDER"):
            lines(folder / name / f"{family}.json", [{"examples": examples}])
    options = ["(A)one", "(B)two", "(C)three", "(D)four"]
    for name in ("agieval", "AGIEVAL_FOLDER"):
        asked = ({"passage": None, "question": f"Which comes after {n}?"} for n in range(220))
        lines(folder / name / "sat-math.jsonl", (row | {"options": options, "label": "B"} for row in asked))
    true = [truth(number) for number in range(817)]
    (folder / "mc_task.json").write_text(json.dumps(true))
    lines(folder / "truthfulqa_408.jsonl", true[:408])
    lines(folder / "question.jsonl", ({"question_id": n, "text": f"Why {n}?"} for n in range(1, 81)))


def truth(number: int) -> dict[str, Any]:
    false = {f"Not {number}, but {other}": 0 for other in range(2 if number < 133 else 4)}
    return {"question": f"What is the number {number}?", "mc1_targets": {f"It is {number}": 1, **false}}


def flan(folder: Path) -> None:
    """Files of every kind that FLAN-v2 comes in."""
    texts = [f"Does thing {n // 26} come after the letter {chr(97 + n % 26)} here?" for n in range(60)]
    names = {"task_name": "t0_task", "template_type": "zs_opt"}
    for source, file in (("NIv2", "niv2.jsonl"), ("P3", "t0.parquet")):
        rows = [{"inputs": f"{source}. {text}", "targets": "no", "task_source": source} for text in texts]
        if file.endswith("jsonl"):
            lines(folder / file, (row | names for row in rows))
        else:
            pyarrow.parquet.write_table(
                pyarrow.Table.from_pylist([row | names for row in rows]), folder / file
            )
    (folder / "aqua_train.tsv").write_text("".join(f"{text}\tno\tIt is not.\n" for text in texts))
    cot = ({"question": f"Now. {text}", "answer": "no", "explanation": "It is not."} for text in texts)
    lines(folder / "flan_cot/part.jsonl", cot)
    instances = [{"id": str(n), "input": text, "output": ["no"]} for n, text in enumerate(texts)]
    task = {"Definition": ["Say yes or no."], "Instances": instances}
    lines(folder / "superni/task1_letters.json", [task])
    lines(folder / "t0/letters.jsonl", ({"prompt": f"T0. {text}", "completion": "no"} for text in texts))
    raw = ({"sentence": f"Text: {text}", "label": ["Good", "Bad"][n % 2]} for n, text in enumerate(texts))
    lines(folder / "flan21_raw/sentiment.jsonl", raw)


def traces(folder: Path) -> None:
    """Trace files in OpenOrca's columns."""
    rows = [
        {
            "id": f"{('cot', 'flan', 'niv', 't0')[n % 4]}.{n}",
            "system_prompt": "" if n % 3 else "Explain each step.",
            "question": f"There are {n} birds, and {n % 7} of them leave. How many are there now?",
            "response": f"At first there are {n}. When {n % 7} leave, {n - n % 7} are left.",
        }
        for n in range(7, 127)
    ]
    for name in ("gpt4_600.jsonl", "gpt4_rows.jsonl"):
        lines(folder / name, rows)
    for name in ("chatgpt.parquet", "gpt4.parquet", "openorca.parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)


def replies(folder: Path, mini: Path, judge: str) -> None:
    """Questions, answers and reviews; `judge` is the address of an endpoint."""
    lines(folder / "questions.jsonl", ({"id": str(n), "question": f"What is {n}?"} for n in range(3)))
    answer = {"task": "snarks", "target": "(B)", "reply": "So the answer is (B)."}
    lines(folder / "FILE.jsonl", (answer | {"id": str(n)} for n in range(4)))
    for name, text in (("ANSWERS.jsonl", "For that."), ("REFERENCE.jsonl", "For this.")):
        lines(folder / name, ({"question_id": n, "text": text} for n in range(1, 81)))
    lines(folder / "REVIEWS.jsonl", ({"question_id": n, "score": [9.0, 8.0]} for n in range(1, 81)))
    endpoint = {"model": "judge", "base_url": judge, "key_variable": ""}
    (folder / "JUDGE.json").write_text(json.dumps(endpoint))
    for name, message in (("FIRST_DIR", 1), ("SECOND_DIR", 7)):
        shutil.copytree(mini / f"evaluation/puzzles-message-{message}", folder / name)


def weights(folder: Path, mini: Path) -> None:
    """Model folders."""
    for name in ("MODEL_FOLDER", "llama-13b"):
        convert.export_student(mini, folder / name, dtype="float32", layout="")


def write(folder: Path, mini: Path, judge: str) -> None:
    """All of it into `folder`; `mini` is the finished run of configs/mini.py:runlocal."""
    benchmarks(folder)
    flan(folder)
    traces(folder)
    for name in ("tokenizer.model", "mistral_v1_32000.model"):
        shutil.copy(mini / "tokenizer/tokenizer.model", folder / name)
    replies(folder, mini, judge)
    weights(folder, mini)
    shutil.copytree(pages.REPOSITORY / "docs/examples", folder / "docs/examples")
    for name, without in RUNS.items():
        shutil.copytree(mini, folder / "runs" / name, ignore=shutil.ignore_patterns(*without))
