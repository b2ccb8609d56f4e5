"""Three real teachers' first replies to the same procedural questions, beside the known answers alone.

Paper: sections 3.1.3 and 6.1 with Table 10, with language models as teachers and equal questions. Data:
open-thought/reasoning-gym-eval (Apache-2.0), one Parquet file of 3,918 questions of 95 families with
`expected` and each model's reply and score: Mistral-Small-24B (the weaker teacher, 33 of 100 right) and
Llama-4-Maverick (the stronger, 58). A tenth of the questions, by hash, is the test; no teacher's answer to
them is trained on. A reply is right if it gives `expected`: where a question has several right answers
(graph_color, group_anagrams) only that one counts. `data` is the file, `init` SmolLM2-135M-Instruct (`make
student` fetches it).

    python -m experiments.ablate --config=configs/gym.py:data=FILE --workdir=runs/gym

`all` keeps wrong replies, as the paper does; `right` leaves out those of a score below 1, so that the two
teachers' questions are no longer the same. Both have 1,048,576 packed positions an arm, for a GPU.
"""

from typing import Any

from ml_collections import ConfigDict

from orca_jax.config_arms import complete_set
from orca_jax.configs import granularity
from orca_jax.configs.arguments import parse

QUESTION = "Do real teachers' solutions beat answers, and does their order matter, on the same questions?"
MODELS = {"weaker": "mistral_small_24b", "stronger": "llama4_maverick"}
NOTES = {
    "answers": "the expected answer alone",
    "weaker": "Mistral-Small-24B's replies",
    "stronger": "Llama-4-Maverick's replies",
    "progressive": "Mistral-Small-24B's, then Llama-4-Maverick's",
    "reversed": "Llama-4-Maverick's, then Mistral-Small-24B's",
}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=all|right`, `data=FILE`, `init=FOLDER` (weights), `runlocal` (seconds)."""
    args = parse(arg, variant=("all", "right"), paths=("init", "data"))
    path = args.data or "reasoning_gym_teachers.parquet"
    curricula = granularity.two_teachers(4 if args.runlocal else 512)
    config = ConfigDict(dict(name=f"gym-{args.variant}", question=QUESTION, baseline="answers"))
    config.base = granularity.base(args.init, args.runlocal)
    if not args.runlocal:
        config.base.data.row_length, config.base.train.batch_rows = 1024, 2
        config.base.evaluation.update(max_tokens=512, max_length=1024)
    config.base.update(
        teachers=_teachers(path, args.variant == "right"),
        choices=[
            dict(name="gym", path=path, question=["question"], answer="expected", task="family", share=0.1)
        ],
        curriculum=curricula["answers"],
    )
    config.results = [dict(title="Accuracy", evaluation="gym-robust")]
    config.arms = [
        dict(name=name, note=note, changes=dict(curriculum=curricula[name])) for name, note in NOTES.items()
    ]
    # Predicted before any run. Replies of a hundred words are more than this student can follow, and answers
    # alone are mostly guessed, so that neither is far from the other.
    config.hypotheses = [
        dict(name=f"{one} - {other}", arm=one, minus=other, at_least=low, at_most=high)
        for one, other, low, high in (
            ("stronger", "answers", -10, 5),
            ("stronger", "weaker", -3, 5),
            ("progressive", "stronger", -3, 3),
            ("progressive", "reversed", -3, 3),
        )
    ]
    if args.runlocal:
        config.seeds = (0,)
    return complete_set(config)


def _teachers(path: str, only_right: bool) -> list[dict[str, Any]]:
    common = dict(target="expected", task="family")
    answers = dict(name="answers", kind="file", path=path, columns=dict(common, answer="expected"))
    teachers = []
    for name, model in MODELS.items():
        columns = dict(common, answer=model, score=f"{model}_score", min_score=1.0 if only_right else None)
        teachers.append(dict(name=name, kind="file", path=path, columns=columns))
    return [answers, *teachers]
