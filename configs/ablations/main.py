"""Do explanations beat answers, and does an intermediate teacher help? Five arms at equal training tokens.

Paper: sections 3.1.3 and 6.1 with Table 10, which change teacher, amount of data and order at once. Here all
arms have the same number of steps and packed positions, and differ only in their curriculum: `answers`
imitates answers without explanations or system messages, as Alpaca and Vicuna do; `expert` and `apprentice`
have one teacher; `progressive` is the paper's; `mixed` has the same data in one stage.

    python -m experiments.ablate --config=configs/ablations/main.py --workdir=runs/main --jobs=2

Expected on 2 cores: docs/findings.md, with the result. `variant=full` has the same arms for LLaMA-13B on
FLAN-v2 and two trace files, evaluated on BBH and AGIEval:

    python -m experiments.ablate --config=configs/ablations/main.py:variant=full --workdir=runs/main-full \\
        --arms=progressive --config.base.student.init=llama-13b --config.base.student.preset='' \\
        --config.base.teachers[1].path=chatgpt.jsonl --config.base.teachers[2].path=gpt4.jsonl \\
        --config.base.flan[0].sources.submix='FLAN/*.parquet' \\
        --config.base.benchmarks.bbh=BBH_FOLDER --config.base.benchmarks.agieval=AGIEVAL_FOLDER
"""

from typing import Any

from ml_collections import ConfigDict

from orca_jax.config_arms import complete_set
from orca_jax.configs import orca_13b
from orca_jax.configs.ablations import miniature
from orca_jax.configs.arguments import parse

QUESTION = "Do explanations beat answers, and does an intermediate teacher help, at equal training tokens?"
NOTES = {
    "progressive": "apprentice, then expert",
    "answers": "correct answers alone, no system message",
    "expert": "expert alone, on its fifth of the queries",
    "apprentice": "apprentice alone",
    "mixed": "both teachers' rows in no order",
}
FULL_STEPS = 70_000  # of 128 rows: 4 epochs of both sets at the paper's 2.7 examples a row


def get_config(arg: str = "") -> ConfigDict:
    """`variant=miniature|full`, `runlocal` (seconds)."""
    args = parse(arg, variant=("miniature", "full"))
    curricula: dict[str, list[dict[str, Any]]] = {
        name: [miniature.stage(name)] for name in ("answers", "apprentice", "expert")
    }
    curricula["mixed"] = [miniature.stage("mixed", datasets={"apprentice": 0.8, "expert": 0.2})]
    curricula["progressive"] = miniature.two_stages("apprentice", "expert")
    if args.variant == "full":
        return _full(args.runlocal, curricula)
    arms = [
        miniature.arm(name, note, curricula[name], message=1 if name == "answers" else 7)
        for name, note in NOTES.items()
    ]
    return miniature.arm_set("runlocal" if args.runlocal else "", "main", QUESTION, miniature.TEACHERS, arms)


def _full(runlocal: bool, curricula: dict[str, list[dict[str, Any]]]) -> ConfigDict:
    """The same arms for LLaMA-13B, with steps and learning rates of its own."""
    for name, stages in curricula.items():
        for stage in stages:
            rate = 1e-5 if len(stages) == 2 and stage["name"] == "expert" else 2e-5
            stage.update(steps=round(FULL_STEPS / miniature.STEPS * stage["steps"]), learning_rate=rate)
        curricula[name] = miniature.shrunk(stages, FULL_STEPS) if runlocal else stages
    config = ConfigDict(dict(name="main-full", question=QUESTION, baseline="progressive"))
    config.base = orca_13b.get_config("runlocal" if runlocal else "")
    config.base.update(flan=[dict(sources={})], curriculum=curricula["progressive"])
    config.base.teachers = [
        dict(name="answers", kind="targets", message=1),
        dict(name="apprentice", kind="file", path="chatgpt.jsonl"),
        dict(name="expert", kind="file", path="gpt4.jsonl"),
    ]
    config.results = [dict(title=name, evaluation=f"{name}-orca") for name in ("bbh", "agieval")]
    config.arms = [
        dict(name=name, note=note, changes=dict(curriculum=curricula[name])) for name, note in NOTES.items()
    ]
    return complete_set(config)
