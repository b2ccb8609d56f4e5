"""Options, commands, help and errors of programs that are made for these tests."""

import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

from orca_jax import cli
from orca_jax.artifacts import ArtifactError
from orca_jax.teachers.endpoint import CollectionStopped
from orca_jax.teachers.limits import BudgetSpent
from orca_jax.training import hosts

ONE = cli.Program(
    "Does one thing.",
    cli.Option("name", "x", "A text."),
    cli.Option("limit", 0, "At least 0.", lower_bound=0),
    cli.Option("ratio", 1.0, "From 0 to 1.", lower_bound=0, upper_bound=1),
    cli.Option("fast", False, "A switch."),
    cli.Option("seeds", list, "Several, with commas."),
    cli.Option("stop", (), "May be given more than once."),
    cli.Option("form", "", "A choice.", choices=("", "jsonl", "parquet")),
    cli.Option("message", int, "A number or none."),
)
MANY = cli.Program(
    "Does several things.",
    commands={
        "run": cli.Command("Runs.\n\nAt length.", cli.Option("limit", 0, "Questions.")),
        "score": cli.Command("Scores.", cli.Option("input", "", "The replies.", required=True)),
    },
    default="run",
)
NEEDS = cli.Program("Does things.", commands={"import": cli.Command("In."), "export": cli.Command("Out.")})


def given(program, *arguments):
    program.start(arguments)
    found = []
    program.main(found.append) if "" in program.commands else program.main(
        **{name: lambda options, name=name: found.append((name, options)) for name in program.commands}
    )
    return found[0]


def refused(capsys, program, *arguments):
    with pytest.raises(SystemExit) as left:
        program.start(arguments)
    assert left.value.code == 1
    return capsys.readouterr().err


def test_an_option_has_the_type_of_its_default():
    options = given(ONE)
    assert (options.name, options.limit, options.ratio, options.fast) == ("x", 0, 1.0, False)
    assert (options.seeds, options.stop, options.form, options.message) == (None, [], "", None)
    options = given(ONE, "--name=y", "--limit", "3", "--fast", "--seeds=a,b", "--stop=1", "--stop", "2")
    assert (options.name, options.limit, options.fast) == ("y", 3, True)
    assert (options.seeds, options.stop) == (["a", "b"], ["1", "2"])
    assert given(ONE, "--message=-1").message == -1
    assert not given(ONE, "--nofast").fast


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limt=3"], ["limt", "Did you mean: limit"]),
        (["--limit=x"], ["limit", "'x'"]),
        (["--limit=-1"], ["limit", "-1"]),
        (["--ratio=2"], ["ratio", "2"]),
        (["--form=csv"], ["form", "csv", "parquet"]),
        (["--name"], ["Missing value", "name"]),
        (["again"], ["'again' is no option", "--"]),
        (["--fast", "again"], ["'again' is no option", "--"]),
    ],
)
def test_what_is_no_option_is_refused(capsys, arguments, words):
    said = refused(capsys, ONE, *arguments)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


def test_a_command_has_options_of_its_own(capsys):
    assert given(MANY, "--limit=3")[0] == "run"
    assert given(MANY, "run")[1].limit == 0
    name, options = given(MANY, "score", "--input=a")
    assert (name, options.input) == ("score", "a")
    assert not hasattr(options, "limit")
    assert "--limit is an option of run" in refused(capsys, MANY, "score", "--input=a", "--limit=1")
    assert "give --input" in refused(capsys, MANY, "score")
    assert "unknown command 'scores'; did you mean 'score'?" in refused(capsys, MANY, "scores")
    assert "unknown command 'x'; known: run, score" in refused(capsys, MANY, "x", "--help")
    assert "a command is missing; known: import, export" in refused(capsys, NEEDS)


def helped(capsys, program, *arguments):
    with pytest.raises(SystemExit) as left:
        program.start([*arguments, "--help"])
    assert left.value.code is None
    return capsys.readouterr().out


def test_help_has_the_docstring_the_commands_and_the_options(capsys):
    text = helped(capsys, ONE)
    assert text.startswith("Does one thing.\n\nOptions:\n  --name")
    assert "One of: jsonl, parquet." in text
    assert "From 0 to 1. [1.0]" in text
    assert "--traceback" in text
    text = helped(capsys, MANY)
    assert "run                   Runs.\n" in text
    assert "At length" not in text
    assert "Options of `run`:\n  --limit" in text
    assert "--input" not in text
    assert helped(capsys, MANY, "score").startswith("Scores.\n\nOptions:\n  --input")
    assert "[required]" in helped(capsys, MANY, "score")
    assert "--" not in helped(capsys, NEEDS).replace("--help", "")


def test_help_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for program, *words in ((ONE,), (MANY,), (MANY, "score")):
        lines = helped(capsys, program, *words).splitlines()
        assert max(map(len, lines)) <= 40
    assert "  --traceback\n    Show the traceback" in helped(capsys, ONE)


# How a program ends


@pytest.fixture
def ended(capsys, monkeypatch):
    """`ended(command, *arguments)`: what a program says at its end."""
    monkeypatch.setattr(cli, "set_up_logging", lambda: None)
    monkeypatch.setattr(cli, "keep_compiled", lambda: None)

    def run(command, *arguments):
        program = cli.Program("Does one thing.", commands={"run": command}, default="run")
        program.start(arguments)
        program.main(run=lambda options: None)
        return capsys.readouterr().err

    return run


def test_a_program_ends_with_where_things_are_and_what_to_run_next(ended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # that of another program
    command = cli.Command("Makes.", *cli.EXPERIMENT, made=("{workdir}/tokens",), then="train {same}")
    said = ended(command, "--config=mini:runlocal", "--workdir=a b", "--config.seed=3")
    assert said == (
        "done: a b/tokens; next: python -m orca_jax.experiments.train --config=mini:runlocal '--workdir=a b' "
        "--config.seed=3\n"
    )


def test_a_program_that_leaves_nothing_says_nothing(ended):
    assert ended(cli.Command("Shows.", cli.OUT), "--out=x") == ""
    assert ended(cli.Command("Makes.", cli.Option("out", "", "A file."), made=("{out}",))) == ""


def test_every_exit_code_is_in_the_table(repo):
    page = (repo / "docs/troubleshooting.md").read_text(encoding="utf-8")
    section = page.partition("## Exit codes")[2].partition("\n## ")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+)", section, re.M)}
    assert listed == {0, cli.EXIT_ERROR, BudgetSpent.exit_status, hosts.AGAIN, cli.EXIT_INTERRUPTED, 128}
    for other in set((repo / "docs").glob("*.md")) - {repo / "docs/troubleshooting.md"}:
        assert not re.search(r"^\| exit code", other.read_text(encoding="utf-8"), re.M), other


# Errors that end a program


def test_an_error_to_mend_ends_with_its_message_and_status_1(capsys):
    def fail():
        raise ArtifactError("that directory is another's")

    with pytest.raises(SystemExit) as left:
        cli.checked(fail)
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: that directory is another's\n"
    with pytest.raises(ArtifactError):
        cli.checked(fail, traceback=True)


def test_a_spent_budget_has_a_status_of_its_own_and_no_advice_is_added_to_what_an_api_said(capsys):
    def fail(error):
        raise error

    for error, status, said in (
        (BudgetSpent("10 USD are spent"), 3, "stopped: 10 USD are spent\n"),
        (
            CollectionStopped("it said: No such file or directory"),
            1,
            "error: it said: No such file or directory\n",
        ),
    ):
        with pytest.raises(SystemExit) as left:
            cli.checked(lambda error=error: fail(error))
        assert left.value.code == status
        assert capsys.readouterr().err == said


def test_only_an_error_of_xla_is_about_the_devices_memory(capsys):
    def fail(error):
        raise error

    for kind in (jax.errors.JaxRuntimeError, OSError):
        with pytest.raises(SystemExit):
            cli.checked(lambda kind=kind: fail(kind("RESOURCE_EXHAUSTED: too much")))
        assert ("memory" in capsys.readouterr().err) == (kind is not OSError)
    with pytest.raises(RuntimeError):  # of a library, with its traceback
        cli.checked(lambda: fail(RuntimeError("RESOURCE_EXHAUSTED: quota")))


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.checked(lambda: 1 / 0)


def test_ctrl_c_says_how_to_go_on(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        cli.checked(interrupted)
    assert left.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


# Configs


@pytest.fixture
def configured(repo, tmp_path, monkeypatch):
    """The config of mini.py, found in the package, with keys as on a command line."""
    monkeypatch.chdir(tmp_path)
    program = cli.Program("Does one thing.", cli.CONFIG)

    def load(*keys, file="configs/mini.py:runlocal"):
        program.start([f"--config={file}", *(f"--config.{key}" for key in keys)])
        return program.given.config

    return load


def test_configs_of_the_package_serve_where_there_are_none(configured, tmp_path, capsys):
    assert configured().train.batch_rows == 4
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mini.py").write_text("def get_config(): return {}['own']")
    with pytest.raises(SystemExit):
        configured(file="configs/mini.py")
    with pytest.raises(SystemExit):
        configured(file="configs/none.py")
    said = capsys.readouterr().err
    assert said.startswith(
        "error: configs/mini.py: own\nerror: no config file configs/none.py; the package has"
    )


def test_a_name_alone_is_a_config_of_the_package(configured, tmp_path, capsys):
    assert configured(file="mini:runlocal").puzzles.per_family == 40
    assert configured(file="mini").puzzles.per_family == 3500
    (tmp_path / "mini.py").write_text("def get_config(): return {}['own']")
    for name, said in (("mini", "mini.py: own"), ("minny", "no config file minny; the package has api")):
        with pytest.raises(SystemExit):
            configured(file=name)
        assert f"error: {said}" in capsys.readouterr().err


def test_keys_are_set_from_texts(configured):
    config = configured(
        "name=7", "seed=3", "student.tie_embeddings=true", "optimizer.clip_norm=1e-1", "train.keep=3",
        "curriculum[0].steps=9", "curriculum[1].datasets.apprentice=0.5", "evaluation.messages=1,2",
        "puzzles.difficulties=2", "puzzles.families=navigate,web_of_lies", "evaluation.modes.bbh=('orca',)",
        "benchmarks.bbh=", "data.layout=chatml", "compiler_options={'xla_a': '1'}",
    )  # fmt: skip
    assert config.compiler_options == {"xla_a": "1"}
    assert configured("compiler_options={}", "name={seven}").compiler_options == {}
    assert (config.name, config.seed, config.student.tie_embeddings) == ("7", 3, True)
    assert (config.optimizer.clip_norm, config.train.keep, config.curriculum[0].steps) == (0.1, 3, 9)
    assert config.curriculum[1].datasets == {"expert": 1.0, "apprentice": 0.5}
    assert (config.evaluation.messages, config.puzzles.difficulties) == ((1, 2), (2,))
    assert (config.puzzles.families, config.data.layout) == (("navigate", "web_of_lies"), "chatml")
    assert (config.evaluation.modes["bbh"], config.benchmarks["bbh"]) == (("orca",), "")


def test_a_switch_of_the_config_may_be_0_or_1(configured):
    assert configured("student.tie_embeddings=1").student.tie_embeddings is True
    assert configured("student.tie_embeddings=0").student.tie_embeddings is False


def test_a_key_of_the_config_lacks_its_value(capsys):
    program = cli.Program("Does one thing.", cli.CONFIG)
    for more in (["--config.seed", "3"], ["--config.seed"]):
        said = refused(capsys, program, "--config=configs/mini.py", *more)
        assert said == "error: --config.seed lacks its value; write --config.seed=VALUE\n"


PROGRAM = """
import sys
from orca_jax import cli

def work(options):
    import jax
    print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
    print(float(jax.jit(lambda x: x @ x.T)(jax.numpy.ones((40, 50)))[0, 0]))

if sys.argv.pop() == "first":
    import jax
program = cli.Program("Multiplies.")
program.start()
program.main(work)
"""


@pytest.mark.parametrize("imported", ["first", "later"])
def test_compiled_programs_are_kept_in_the_users_cache_folder_or_where_jax_is_told(tmp_path, imported):
    def printed(**more):
        ours = {name: value for name, value in os.environ.items() if "CACHE" not in name}
        environment = ours | {"XDG_CACHE_HOME": str(tmp_path), **more}
        command = [sys.executable, "-c", PROGRAM, imported]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)

    folder = tmp_path / "orca_jax/compiled"
    quick = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert printed(**quick).stdout.splitlines() == [f"{folder} {cli.COMPILED_BYTES}", "50.0"]
    kept = {path.name for path in folder.glob("*-cache")}
    assert kept
    if imported == "first":
        again = printed(**quick)
        assert {path.name for path in folder.glob("*-cache")} == kept
        assert (again.stdout.splitlines()[1], again.stderr) == ("50.0", "")
    if imported == "later":
        elsewhere = printed(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "x"), **quick)
        assert elsewhere.stdout.startswith(f"{tmp_path}/x ")
        shutil.rmtree(folder)
        printed(JAX_COMPILATION_CACHE_DIR="", **quick)
        assert not folder.exists()
