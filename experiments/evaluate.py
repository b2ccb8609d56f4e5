"""Evaluates a model on the puzzles and on every benchmark of the config, each in its modes.

    python -m experiments.evaluate --config=configs/mini.py --workdir=runs/mini

`run`, which may be left out, takes the workdir's newest whole checkpoint unless --model names another model.
Run again, it goes on. Hosts that share the workdir answer a part each with --part, and one run without it
scores. It writes WORKDIR/evaluation/NAME: replies.jsonl, items.jsonl and scores.json.
"""

from __future__ import annotations

from orca_jax import cli
from orca_jax.config import BENCHMARK_MODES

BENCHMARK = cli.Option("benchmark", "", "Its name in docs/evaluation.md.", required=True)
PATH = cli.Option("path", "", "The benchmark's folder or file.", required=True)
MODE = cli.Option("mode", "", "How questions are put and replies are read; see docs/evaluation.md.")
ROWS = cli.Option("rows", int, "Rows of a benchmark's file that is a part of the published one.")
OPEN = tuple(name for name, modes in BENCHMARK_MODES.items() if modes == ("open_ended",))
LIMIT = cli.Option("limit", 0, "Questions of each task; 0: all.", lower_bound=0)
PART = cli.Option("part", "", "I/N: only answers the I-th part of N, as one of N hosts; auto: found by JAX.")
RUN = cli.Command(
    "Evaluates a model: replies, items and scores.",
    *cli.EXPERIMENT,
    cli.Option(
        "model",
        "",
        "Another model: a student, as `serve` takes one, or a JSON file of an endpoint.",
    ),
    cli.Option("system", "", "The system message, by id or in words."),
    cli.Option("samples", 1, "Replies to each question.", lower_bound=1),
    LIMIT,
    PART,
    cli.Option("toxicity_classifier", "", "A folder with a toxicity classifier."),
    made=("{workdir}/evaluation",),
    then=lambda given: "evaluate {same}" if given.part else "tables {same}",
)
SCORE = cli.Command(
    """Scores replies made anywhere.

    python -m experiments.evaluate score --benchmark=bbh --mode=answer_is --input=FILE --out=DIR
    python -m experiments.evaluate score --benchmark=judged --input=REVIEWS --out=DIR

FILE has lines {"task", "id", "target", "reply"} (see orca_jax/evaluation/replies.py), REVIEWS lines as
Vicuna's reviews have them (see orca_jax/evaluation/judging.py). DIR gets items.jsonl and scores.json.""",
    cli.Option("benchmark", "", "`judged`, `puzzles` or its name in docs/evaluation.md.", required=True),
    MODE,
    cli.Option("input", "", "The file of replies or reviews.", required=True),
    cli.OUT,
    cli.Option("path", "", "The benchmark's folder or file, if it is at hand."),
    ROWS,
    made=("{out}",),
)
COMPARE = cli.Command(
    """Pairs two evaluations of the same items: which is right more often, and by which steps.

    python -m experiments.evaluate compare --first=DIR --second=DIR --names=answers,explanations""",
    cli.Option("first", "", "A folder of `run`, `score` or lm-eval, or lm-eval's samples.", required=True),
    cli.Option("second", "", "Another one.", required=True),
    cli.Option("names", ["first", "second"], "What they are called."),
    cli.Option("metric", "", "Of lm-eval, where there are several: `acc`, or `acc,none` with the filter."),
)
SHOW = cli.Command(
    "Prints the first question of a benchmark in each mode; with --mode, the first of each task.",
    BENCHMARK,
    PATH,
    MODE,
    cli.Option("task", "", "Only of this task."),
    ROWS,
)
JUDGE = cli.Command(
    """Lets a model judge a candidate's answers to open questions beside a reference's, in both orders.

ANSWERS are a replies.jsonl of `run`, or lines {"question_id", "text"}. DIR gets the ledger, reviews.jsonl and
scores.json. Run again, it pays for no review twice.""",
    cli.Option("benchmark", "", "Open questions.", required=True, choices=OPEN),
    PATH,
    cli.Option("model", "", "The judge: a JSON file with an endpoint's settings.", required=True),
    cli.Option("reference", "", "ANSWERS of the reference.", required=True),
    cli.Option("candidate", "", "ANSWERS of the candidate.", required=True),
    cli.OUT,
    cli.Option("prompts", "", "Prompts in the format of FastChat's prompt.jsonl; empty: one of our own."),
    cli.Option("orders", ["reference_first", "candidate_first"], "Which of the two orders."),
    PART,
    made=("{out}",),
)
LM_EVAL = cli.Command(
    """Runs tasks of lm-eval (lm-evaluation-harness, extra `lm-eval`) on a student.

    python -m experiments.evaluate lm_eval --model=runs/mini --tasks=bbh_zeroshot --out=DIR

DIR gets lm-eval's results and samples.""",
    cli.MODEL,
    cli.Option("tasks", [], "Names of lm-eval's tasks.", required=True),
    cli.OUT,
    cli.Option("include_path", str, "A folder with tasks of your own."),
    cli.Option("apply_chat_template", False, "Descriptions become system messages."),
    LIMIT,
    PART,
    cli.LAYOUT,
    cli.DTYPE,
    cli.Option("batch_size", 32, "Replies decoded together, at most.", lower_bound=1),
    cli.Option("max_length", 2048, "Prompt and reply together, in tokens.", lower_bound=2),
    made=("{out}",),
)
EDITS = cli.Command(
    "Edits a step of each right reply of a student to puzzles, and counts the answers that follow the edit.",
    cli.MODEL,
    cli.LAYOUT,
    cli.Option("family", "tracking", "Of test puzzles."),
    cli.Option("difficulty", 4, "Of the puzzles.", lower_bound=1),
    cli.Option("count", 100, "Puzzles.", lower_bound=1),
    cli.Option("system", "", "The system message in words."),
    cli.Option("seed", 0, "Of puzzles and edits."),
)
PROGRAM = cli.Program(
    __doc__,
    commands=dict(
        run=RUN, score=SCORE, compare=COMPARE, show=SHOW, judge=JUDGE, lm_eval=LM_EVAL, edits=EDITS
    ),
    default="run",
    parts=("queries", "tokenizer", "training", "evaluation", "ledger.sqlite", "logs"),
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

from pathlib import Path

from orca_jax.evaluation import edited_steps, judging, model, parts, replies, scoring
from orca_jax.evaluation.benchmarks import open_ended, registry
from orca_jax.evaluation.benchmarks.registry import show
from orca_jax.evaluation.parts import Part
from orca_jax.evaluation.run import Options, run
from orca_jax.queries.puzzles import make_puzzles
from orca_jax.records import Message, Sampling
from orca_jax.reporting import arms, tables

EDITED_TOKENS = 512  # of a reply


def edits(given: cli.Options) -> None:
    """Prints what became of edits in a student's own right replies."""
    from orca_jax.serving.local import load_student

    student, sampling = load_student(given.model, given.layout), Sampling(max_tokens=EDITED_TOKENS)
    puzzles = make_puzzles(
        given.family, difficulties=(given.difficulty,), count=given.count, seed=given.seed, split="test"
    )
    found = edited_steps.measure(
        puzzles,
        [Message("system", given.system)],
        lambda asked: student.answer(asked, sampling),
        lambda begun: student.go_on(begun, sampling),
        seed=given.seed,
    )
    print(", ".join(f"{name} {count}" for name, count in found._asdict().items()))


def run_command(given: cli.Options) -> None:
    options = Options(
        model=given.model,
        system=given.system,
        samples=given.samples,
        limit=given.limit,
        classifier=given.toxicity_classifier,
        part=part_of(given.part),
    )
    run(given.config, given.workdir, options)


def part_of(given: str) -> Part:
    """What `--part` says.

    Raises:
      ValueError: it is no such part.
      HostsError: there is no cluster to find it from.
    """
    if given == "auto":
        import jax

        from orca_jax.training import hosts

        hosts.join("auto")
        return jax.process_index() + 1, jax.process_count()
    which, _, count = given.partition("/")
    if not given:
        return parts.WHOLE
    if not (which.isdecimal() and count.isdecimal() and 1 <= int(which) <= int(count)):
        raise ValueError(f"--part={given} must be auto, or I/N with I from 1 to N, as 2/4")
    return int(which), int(count)


def score(given: cli.Options) -> None:
    file, out = Path(given.input), Path(given.out)
    if given.benchmark == judging.BENCHMARK:
        print(judging.text(judging.score_reviews(file, out)))
        return
    if not given.mode:
        raise ValueError(f"give --mode, one of {', '.join(scoring.MODES)}")
    scores = replies.score(given.benchmark, given.mode, file, out, given.path, given.rows)
    print(tables.score_table(scores))


def compare(given: cli.Options) -> None:
    if len(given.names) != 2:
        raise ValueError(f"--names={','.join(given.names)} must be two names with a comma between")
    print(arms.compare_folders(Path(given.first), Path(given.second), tuple(given.names), given.metric))


def judge(given: cli.Options) -> None:
    part = part_of(given.part)
    scores = judging.judge(
        registry.questions(given.benchmark, given.path, mode=open_ended.MODE),
        judging.read_answers(Path(given.reference)),
        judging.read_answers(Path(given.candidate)),
        model.read_endpoint(given.model),
        Path(given.out),
        forms=judging.read_forms(given.prompts) if given.prompts else None,
        orders=given.orders,
        part=part,
    )
    if part == parts.WHOLE:
        print(judging.text(scores))
    else:
        print("part {} of {} is reviewed; run without --part to score".format(*part))


def lm_eval(given: cli.Options) -> None:
    try:
        from orca_jax.evaluation import lm_eval as adapter
    except ImportError as error:
        raise ValueError(f"lm-eval is missing ({error}); install the extra lm-eval") from error
    from orca_jax.serving.local import load_student
    from orca_jax.training import students

    part = part_of(given.part)  # before JAX's devices are used
    sizes = {"batch_size": given.batch_size, "max_length": given.max_length}
    student = load_student(students.open_source(given.model), given.layout, dtype=given.dtype, **sizes)
    how = {"apply_chat_template": given.apply_chat_template, "limit": given.limit or None, "part": part}
    table = adapter.evaluate(student, given.tasks, Path(given.out), include_path=given.include_path, **how)
    print(table)


def main() -> None:
    PROGRAM.main(
        run=run_command,
        score=score,
        compare=compare,
        show=lambda given: print(show(given.benchmark, given.path, given.mode, given.task, given.rows)),
        judge=judge,
        lm_eval=lm_eval,
        edits=edits,
    )


if __name__ == "__main__":
    main()
