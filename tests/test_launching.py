"""The scripts in launch/, run on stand-ins for the platforms' own commands, and their manifests."""

import itertools
import math
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orca_jax.planning import chips
from orca_jax.training.hosts import AGAIN

WORKDIR = "--workdir=/share/a run"  # an argument with a space stays one
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$HOME/srun.txt"
env >"$HOME/env.txt"
[ -z "$SIGNALLED" ] || kill -TERM "$PPID"
exit "$STATUS"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >"$HOME/scontrol.txt"
"""
# A slice of one worker, whose home is $HOME. Setting up is noted and not done.
GCLOUD = """#!/usr/bin/env bash
echo "$3 $4" >>"$HOME/gcloud.txt"
case "$3 $4" in
    "queued-resources create") echo ACTIVE >"$HOME/state" ;;
    "queued-resources delete") rm "$HOME/state" ;;
    "queued-resources describe") cat "$HOME/state" ;;
    "tpu-vm scp") test -s "$5" ;;
    "tpu-vm ssh")
        command="${@: -1}"
        cd "$HOME"
        [[ "$command" == *apt-get* ]] || exec bash -c "${command#--command=}"
        ;;
    *) exit 9 ;;
esac
"""
# Ends with one status after the other; a status of 143 is a preemption. Told to wait, it waits for SIGTERM.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$HOME/python.txt"
env >"$HOME/env.txt"
status=$(head -n 1 "$HOME/statuses")
sed -i 1d "$HOME/statuses"
[ "$status" != 143 ] || echo SUSPENDED >"$HOME/state"
[ "$status" != wait ] || { trap 'exit 75' TERM; echo >"$HOME/ready"; for _ in {1..600}; do sleep 0.05; done; }
exit "$status"
"""


@pytest.fixture
def run(repo, tmp_path):
    """`run(script, *arguments, **variables)` with the stand-ins first on the path."""
    stands = {"srun": SRUN, "scontrol": SCONTROL, "gcloud": GCLOUD, "orca_jax/.venv/bin/python": PYTHON}
    for name, text in stands.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(script, *arguments, **variables):
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {**os.environ, "HOME": str(tmp_path), "PATH": path, **variables}
        command = ["bash", repo / "launch" / script, *arguments]
        return subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=60)

    return start


# The values are those that jax sets on TPU VMs (its cloud_tpu_init.py).
STALLS = {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "60", "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "256"}


def assert_platform(variables, platforms):
    """The variables are those that make jax refuse a fall back to the CPU, and Orbax a stalled connection."""
    assert variables["JAX_PLATFORMS"] == platforms
    assert {name: variables[name] for name in STALLS} == STALLS


def environment(folder):
    return dict(line.split("=", 1) for line in lines(folder / "env.txt") if "=" in line)


def test_the_names_are_those_that_tensorstore_reads():
    import tensorstore

    (library,) = Path(tensorstore.__file__).parent.glob("_tensorstore*.so")
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        assert all(text.find(name.encode()) >= 0 for name in STALLS)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


# Slurm


@pytest.mark.parametrize("signalled", ["", "yes"])
@pytest.mark.parametrize("status", [0, 1, AGAIN])
def test_slurm_requeues_what_is_to_be_started_again(run, tmp_path, status, signalled):
    given = ("--config=configs/mini.py", WORKDIR)
    python = str(tmp_path / "orca_jax/.venv/bin/python")
    variables = {"STATUS": str(status), "SIGNALLED": signalled, "SLURM_JOB_ID": "17", "PYTHON": python}
    ended = run("slurm.sbatch", *given, **variables, JAX_PLATFORMS="")
    assert ended.returncode == status, ended.stderr
    assert lines(tmp_path / "srun.txt")[-5:] == ["-m", "experiments.train", "--hosts=auto", *given]
    assert environment(tmp_path)[chips.MEMORY] == str(chips.LAUNCHED)
    assert_platform(environment(tmp_path), "cuda,cpu")
    assert lines(tmp_path / "scontrol.txt") == (["requeue 17"] if status == AGAIN else [])


@pytest.mark.parametrize("more", ["", "--xla_gpu_none_such=1"])
def test_xla_knows_the_flags_for_gpus_and_those_given_come_last(repo, more):
    """It ends the process at one that it does not know, on any platform."""
    given = os.environ | {"XLA_FLAGS": more, chips.MEMORY: "0.8", "JAX_PLATFORMS": "cpu"}
    code = f'import jax, os; jax.devices(); print(os.environ["XLA_FLAGS"], os.environ["{chips.MEMORY}"])'
    command = ["bash", "-c", f"source launch/gpu_flags.sh && {sys.executable} -c '{code}'"]
    done = subprocess.run(command, cwd=repo, env=given, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (not more), done.stderr
    assert more or re.fullmatch(r"(--xla_gpu_\S+=\w+ ){3} 0\.8", done.stdout.strip())


def test_slurm_reads_all_directives(repo):
    text = (repo / "launch/slurm.sbatch").read_text().splitlines()
    directives = [line for line in text if line.startswith("#SBATCH")]
    first = next(number for number, line in enumerate(text) if line and not line.startswith("#"))
    assert all(line in directives for line in text[:first] if "SBATCH" in line)
    options = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups() for line in directives)
    assert options["signal"].startswith("TERM@")  # to the tasks: B: would be to this shell alone
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert {"requeue", "open-mode", "exclusive"} <= set(options)


# TPU VMs

SLICE = {"NAME": "a", "ZONE": "b", "TYPE": "v5p-64", "RUNTIME": "c", "SHARE": "d:/e", "POLL": "0.05"}


@pytest.mark.parametrize(
    ("statuses", "status", "starts", "creations"),
    [
        (["0"], 0, 1, 1),
        ([str(AGAIN), "0"], 0, 2, 1),
        (["143", "0"], 0, 2, 2),
        (["1", "0"], 1, 1, 1),
    ],
)
def test_a_tpu_slice_is_kept_until_training_is_done(run, tmp_path, statuses, status, starts, creations):
    (tmp_path / "statuses").write_text("\n".join(statuses) + "\n")
    ended = run("tpu_pod.sh", "keep", "--config=configs/mini.py", WORKDIR, **SLICE)
    assert ended.returncode == status, ended.stderr
    started = ["-m", "experiments.train", "--hosts=auto", "--config=configs/mini.py", WORKDIR]
    assert lines(tmp_path / "python.txt") == started * starts
    assert_platform(environment(tmp_path), "tpu,cpu")
    asked = lines(tmp_path / "gcloud.txt")
    assert asked.count("queued-resources create") == creations
    assert asked.count("queued-resources delete") == creations - 1
    assert ("ended with status 1" in ended.stderr) == (status == 1)


def test_a_tpu_slice_that_stops_has_saved(run, tmp_path):
    (tmp_path / "statuses").write_text("wait\n")
    (tmp_path / "state").write_text("ACTIVE\n")
    assert run("tpu_pod.sh", "start", **SLICE).returncode == 0
    assert run("tpu_pod.sh", "state", **SLICE).stdout == "ACTIVE\n"
    wait = "for _ in {1..400}; do [ -e ready ] && [ -s train.pid ] && exit; sleep 0.05; done; exit 1"
    subprocess.run(["bash", "-c", wait], cwd=tmp_path, check=True)
    assert run("tpu_pod.sh", "stop", **SLICE).returncode == 0
    assert run("tpu_pod.sh", "watch", **SLICE).returncode == AGAIN


def test_a_slice_evaluates_in_parts_and_scores_once(run, tmp_path):
    (tmp_path / "statuses").write_text("0\n0\n")
    (tmp_path / "state").write_text("ACTIVE\n")
    ended = run("tpu_pod.sh", "evaluate", "--config=configs/mini.py", WORKDIR, **SLICE)
    assert ended.returncode == 0, ended.stderr
    program = ["-m", "experiments.evaluate", "run", "--config=configs/mini.py", WORKDIR]
    assert lines(tmp_path / "python.txt") == [*program, "--part=auto", *program]
    assert_platform(environment(tmp_path), "tpu,cpu")


@pytest.mark.parametrize("missing", ["NAME", "SHARE"])
def test_a_slice_without_a_name_is_refused(run, missing):
    ended = run("tpu_pod.sh", "state", **{**SLICE, missing: ""})
    assert ended.returncode != 0
    assert missing in ended.stderr


# GKE

# Fields by their place, as the types of jobset.x-k8s.io/v1alpha2, batch/v1 and v1 have them.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"failurePolicy", "network", "replicatedJobs", "successPolicy", "suspend"},
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.failurePolicy.rules": {
        "name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs",
    },
    "spec.replicatedJobs": {"name", "groupName", "template", "replicas", "dependsOn"},
    "spec.replicatedJobs.template.spec": {
        "parallelism", "completions", "completionMode", "backoffLimit", "podFailurePolicy", "template",
    },
    "spec.replicatedJobs.template.spec.podFailurePolicy.rules": {"action", "onExitCodes", "onPodConditions"},
    "spec.replicatedJobs.template.spec.template.spec": {
        "restartPolicy", "terminationGracePeriodSeconds", "nodeSelector", "containers", "volumes",
    },
}  # fmt: skip


def at(manifest, place):
    """The mappings at a dotted place, through lists."""
    found = [manifest]
    for key in filter(None, place.split(".")):
        values = [mapping[key] for mapping in found]
        found = list(itertools.chain.from_iterable(v if isinstance(v, list) else [v] for v in values))
    return found


@pytest.fixture
def jobset(repo):
    return yaml.safe_load((repo / "launch/gke_jobset.yaml").read_text())


def test_the_jobset_has_known_fields_only(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    for place, fields in FIELDS.items():
        for mapping in at(jobset, place):
            assert set(mapping) <= fields, place


def test_the_jobset_starts_again_after_a_preemption_and_counts_crashes(jobset):
    (policy,) = at(jobset, "spec.failurePolicy")
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job, pods = (at(jobset, f"spec.replicatedJobs.template.spec{tail}")[0] for tail in ("", ".template.spec"))
    exits, disruption = job["podFailurePolicy"]["rules"]
    assert exits["action"] == disruption["action"] == "FailJob"
    assert (exits["onExitCodes"]["operator"], exits["onExitCodes"]["values"]) == ("In", [AGAIN])
    assert exits["onExitCodes"]["containerName"] == pods["containers"][0]["name"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert pods["restartPolicy"] == "Never"  # without it, a podFailurePolicy is refused
    assert job["backoffLimit"] == 0


def test_the_jobset_fills_its_slice_and_finds_its_disk(jobset, repo):
    job, pods = (at(jobset, f"spec.replicatedJobs.template.spec{tail}")[0] for tail in ("", ".template.spec"))
    (container,) = pods["containers"]
    sides = pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = math.prod(map(int, sides))
    assert (
        job["parallelism"]
        == job["completions"]
        == chips // container["resources"]["limits"]["google.com/tpu"]
    )
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pods["volumes"]}
    given = dict(word[2:].split("=", 1) for word in container["command"] if word.startswith("--"))
    assert (repo / given["config"].partition(":")[0]).is_file()
    assert given["workdir"].startswith(container["volumeMounts"][0]["mountPath"] + "/")
    assert given["hosts"] == "auto"
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert_platform(variables, "tpu,cpu")


def test_the_image_holds_what_the_manifest_starts(repo):
    text = (repo / "launch/Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+)$", text, re.M) for name in line.split()[:-1]]
    assert all((repo / name).exists() for name in copied)
    assert {"orca_jax", "experiments", "configs", "setup.py"} <= set(copied)
