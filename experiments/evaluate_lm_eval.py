"""Lets lm-eval (lm-evaluation-harness, extra `lm_eval`) ask a student its own tasks.

    python -m experiments.evaluate lm_eval --student=runs/mini --tasks=bbh_zeroshot --out=DIR

--student is a workdir, an imported student or a Hugging Face folder. DIR gets lm-eval's results and samples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orca_jax.artifacts import atomic_write
from orca_jax.experiments import launch, options
from orca_jax.serving.local import LocalStudent, load_student
from orca_jax.training import students

RESULTS, SAMPLES = "results.json", "samples.json"


def evaluate(student: LocalStudent, tasks: Sequence[str], out: Path, **options: Any) -> dict[str, Any]:
    """Writes lm-eval's results of a student, and returns them.

    Args:
      options: of `lm_eval.simple_evaluate`.
    """
    import lm_eval

    from orca_jax.evaluation.lm_eval import StudentLM

    model = StudentLM(student)
    found = lm_eval.simple_evaluate(model=model, tasks=list(tasks), log_samples=True, **options)
    samples = found.pop("samples")
    for name, value in ((RESULTS, found), (SAMPLES, samples)):
        with atomic_write(out / name) as file:
            json.dump(value, file, indent=1, default=str, ensure_ascii=False)
    return found


def main(arguments: Sequence[str]) -> None:
    given = options.parser("evaluate_lm_eval").parse_args(arguments)

    def work() -> None:
        try:
            import lm_eval
            from lm_eval.tasks import TaskManager
            from lm_eval.utils import make_table
        except ImportError as error:
            sys.exit(f"error: lm-eval is missing ({error}); install the extra lm_eval")
        source = students.open_source(given.student)
        student = load_student(
            source, given.prompt_layout, batch_size=given.batch_size, max_length=given.max_length
        )
        found = evaluate(
            student,
            given.tasks,
            given.out,
            task_manager=TaskManager(include_path=given.include_path),
            apply_chat_template=given.apply_chat_template,
            limit=given.limit,
        )
        print(
            f"lm-eval {lm_eval.__version__ if hasattr(lm_eval, '__version__') else ''}\n{make_table(found)}"
        )

    launch.checked(work)
