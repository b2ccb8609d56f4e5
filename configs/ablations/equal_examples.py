"""Do explanations beat answers at equal examples? One pass over the same queries, with any number of tokens.

Paper: the claim of sections 1 and 2; the main set compares at equal training tokens, where answers alone see
about three times as many questions. Here both see each question once, and explanations have more tokens;
`answers_longer` continues with answers, for four fifths of the main set's steps.

    python -m experiments.ablate --config=configs/ablations/equal_examples.py --workdir=runs/examples --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import ANSWERS, arm, arm_set, stage

ONCE = dict(steps=0, epochs=1)


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    arms = [
        arm("explanations", "steps, one pass", [stage("explanations", **ONCE)]),
        arm("answers", "answers alone, one pass", [stage("answers", **ONCE)], message=1),
        arm("answers_longer", "answers alone, more passes", [stage("answers", 0.8)], message=1),
    ]
    question = "Do explanations beat answers when both see the same questions equally often?"
    teachers = [ANSWERS, dict(name="explanations", message=7)]
    return arm_set(arg, "equal-examples", question, teachers, arms, per_family=2500, also_empty=False)
