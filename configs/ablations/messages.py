"""What do system messages do? The mixture, the mixture hidden from the student, and one message at a time.

Paper: section 3.1.1 gives 16 messages, and no training without them. `hidden` learns the same answers as
`mixture` under the empty message, so nothing in its prompt asks for steps.

    python -m experiments.ablate --config=configs/ablations/messages.py --workdir=runs/messages --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import arm, arm_set, stage

ALONE = {2: "self-contained and detailed", 4: "in simple words", 7: "step by step"}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    teachers = [dict(name="mixture"), dict(name="hidden", shown=1)]
    teachers += [dict(name=f"only_{number}", message=number) for number in ALONE]
    arms = [
        arm("mixture", "empty, simple, step by step, justify", [stage("mixture")]),
        arm("hidden", "the same answers, no message shown", [stage("hidden")], message=1),
    ]
    arms += [
        arm(f"only_{number}", words, [stage(f"only_{number}")], message=number)
        for number, words in ALONE.items()
    ]
    question = "What do system messages add to explanations?"
    return arm_set(arg, "messages", question, teachers, arms, also_empty=False)
