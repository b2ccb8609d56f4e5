"""A pilot: answers only against explanations, at equal training tokens, one seed.

Both arms train the mini's student for as many steps of as many packed positions on the same puzzles and the
same oracle; they differ in the system messages, hence in what the oracle says. The hardest difficulty is
examined but never trained on. Each arm is examined under the message that it was trained with:

    python -m experiments.run --config=configs/ablations/pilot.py:variant=answers --workdir=runs/pilot-answers
    python -m experiments.run --config=configs/ablations/pilot.py:variant=explanations \\
        --workdir=runs/pilot-explanations
    python -m experiments.compare runs/pilot-answers/evaluation/puzzles-message-1 \\
        runs/pilot-explanations/evaluation/puzzles-message-7 --names answers explanations
"""

from ml_collections import ConfigDict

from configs import mini
from configs.arguments import parse
from experiments.config import complete

MESSAGES = {"answers": 1, "explanations": 7}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=answers|explanations`, `runlocal` (seconds instead of minutes)."""
    args = parse(arg, variant=tuple(MESSAGES))
    message = MESSAGES[args.variant]
    config = mini.get_config("runlocal" if args.runlocal else "")
    config.name = f"pilot-{args.variant}"
    config.puzzles.messages = {str(message): 1.0}
    config.teachers = [dict(name="expert")]
    config.curriculum = [
        dict(name="expert", datasets={"expert": 1.0}, steps=1500, learning_rate=1.5e-3, warmup_steps=50)
    ]
    config.evaluation.update(messages=(message,), difficulties=(2, 3), per_family=200)
    if args.runlocal:
        config.curriculum[0].update(steps=3, warmup_steps=1)
        config.evaluation.per_family = 4
    return complete(config)
