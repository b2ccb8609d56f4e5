"""A miniature of the paper's pipeline on FLAN-v2's own files, with two stages of training.

Paper: sections 3.1 to 3.2, at a thousandth of the size. The teachers are not language models: they give
the answers in the files. `labels` answers every query with its target; `rationales` answers the part that
corresponds to FLAN-1M, with the human-written reasons of FLAN's chain-of-thought sets first. So the student
learns FLAN with human explanations, and nothing of ChatGPT or GPT-4.

Launch, with the sub-collections' files, benchmarks to keep out of training, and a SentencePiece model:

    python -m experiments.run --config=configs/flan.py --workdir=runs/flan \\
        --config.flan[0].sources.cot='FLAN_COT/*.jsonl' --config.flan[0].sources.niv2='SUPERNI/*.json' \\
        --config.flan[0].sources.t0='T0/*.jsonl' --config.flan[0].sources.raw='FLAN21/*.jsonl' \\
        --config.benchmarks.bbh=BBH_FOLDER --config.benchmarks.agieval=AGIEVAL_FOLDER \\
        --config.data.tokenizer=tokenizer.model

Expected on 2 cores, with 15,374 rows in the files: 2,131 queries, 110 steps, 5 minutes of CPU time; held-out
loss 9.84 at step 20, 7.29 at the end (docs/data.md). Nothing is evaluated: `evaluation.modes` names no mode.
The paper's size is the default of `cot`, `niv2_per_task`, `flan2021` and `t0`, with the submix files as
`sources.submix` and teachers behind APIs.
"""

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs.arguments import parse, shrink
from orca_jax.evaluation.benchmarks import registry


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (a tiny student and a tokenizer of its own; two steps a stage)."""
    args = parse(arg)
    config = ConfigDict(dict(name="flan", puzzles={}, optimizer={}, mesh={}))
    config.flan = [dict(sources={}, cot=0.04, niv2_per_task=50, flan2021=600, t0=500)]
    config.teachers = [
        dict(name="labels", kind="targets"),
        dict(name="rationales", kind="rationales", share=0.2, filters=("repetitive",)),
    ]
    config.data = dict(
        tokenizer="tokenizer.model", row_length=1024, max_segments=64, validation_fraction=0.02
    )
    config.student = dict(vocab_size=32_001, hidden_size=64, intermediate_size=176, head_dim=16)
    config.curriculum = [
        dict(name=name, datasets={name: 1.0}, epochs=1, learning_rate=1e-3, warmup_steps=10)
        for name in ("labels", "rationales")
    ]
    config.train = dict(batch_rows=4, checkpoint_every=20, validate_every=20, log_every=5)
    config.evaluation = dict(
        per_family=1, messages=(), modes=dict.fromkeys(registry.BENCHMARKS, ()), max_tokens=32
    )
    if args.runlocal:
        shrink(config)
    return complete(config)
