#!/usr/bin/env bash
# Trains and evaluates on one slice of TPU VMs, requested through queued resources; commands run on all workers.
#
#     export NAME=orca ZONE=us-east5-a TYPE=v5p-64 RUNTIME=v2-alpha-tpuv5 SHARE=10.0.0.2:/share
#     launch/tpu_pod.sh keep --config=configs/orca_13b.py:init=/share/llama-13b \
#         --workdir=/share/orca-13b
#
# `keep` runs create, setup, start and watch, and repeats them after a preemption, until training is finished. Each of
# them is a command too, as are state, stop (saves and ends) and delete. `evaluate` lets each worker answer its part of
# the questions, and then scores all; run again, it asks what is missing. SHARE is an NFS disk (Filestore), mounted as
# /share on every worker; run `prepare` on the workdir first. SPOT=1 requests preemptible capacity.
set -euo pipefail
: "${NAME:?} ${ZONE:?} ${TYPE:?} ${RUNTIME:?} ${SHARE:?}"
again=75          # exit status of the program: saved, run again
poll=${POLL:-30}  # seconds
# jax stops where it gets no TPU. Orbax's writer to buckets gives a connection up that stalls, and tries again.
set_up="export JAX_PLATFORMS=tpu,cpu"
set_up="$set_up TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS=60 TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES=256"

queued() { gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
on() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"; }

state() { queued describe --format='value(state.state)' 2>/dev/null || echo NONE; }

create() {
    queued create --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${SPOT:+--spot}
    until [ "$(state)" = ACTIVE ]; do
        case "$(state)" in
            FAILED | SUSPENDED | NONE)
                echo "error: $NAME is $(state); see: gcloud compute tpus queued-resources describe $NAME" >&2
                return 1
                ;;
        esac
        sleep "$poll"
    done
}

delete() { queued delete --force --quiet; }

setup() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    git archive --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$NAME":orca_jax.tar.gz --zone="$ZONE" --worker=all
    rm "$archive"
    on all "set -e
        sudo apt-get update -q && sudo apt-get install -qy nfs-common python3.11-venv
        sudo mkdir -p /share && (mountpoint -q /share || sudo mount $SHARE /share)
        mkdir -p orca_jax && tar -xzf orca_jax.tar.gz -C orca_jax && cd orca_jax
        python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
}

# Training continues when the connection is lost: output, process id and status are in files on the worker.
start() {
    local command
    command="$set_up; cd orca_jax; .venv/bin/python -m experiments.train --hosts=auto$(printf ' %q' "$@") &"
    command="$command echo \$! >~/train.pid; wait \$!; echo \$? >~/train.status"
    on all "rm -f train.status; nohup setsid bash -c $(printf %q "$command") >>train.log 2>&1 </dev/null &"
}

# Shows the output of worker 0 until it ends or the slice is gone; reconnects if the connection is lost.
watch() {
    local status
    until on 0 "tail -n 20 -f train.log & until [ -s train.status ]; do sleep $poll; done; kill \$!" &&
        status=$(on 0 "cat train.status"); do
        [ "$(state)" = ACTIVE ] || return 1
        sleep "$poll"
    done
    return "$status"
}

stop() { on all "kill -TERM \$(cat train.pid)"; }

keep() {
    local status
    while true; do
        if [ "$(state)" != ACTIVE ]; then
            [ "$(state)" = NONE ] || delete
            create
            setup
        fi
        status=0
        start "$@" && watch || status=$?
        if [ "$status" -eq 0 ]; then
            break
        elif [ "$status" -ne "$again" ] && [ "$(state)" = ACTIVE ]; then
            echo "error: training ended with status $status; see train.log on the workers, and WORKDIR/logs" >&2
            return "$status"
        fi
    done
}

evaluate() {
    local program
    program="$set_up && cd orca_jax && .venv/bin/python -m experiments.evaluate run$(printf ' %q' "$@")"
    on all "$program --part=auto"
    on 0 "$program"
}

case "${1:-}" in
    create | evaluate | setup | start | watch | keep | state | stop | delete) "$@" ;;
    *)
        echo "error: give create, setup, start, watch, keep, evaluate, state, stop or delete" >&2
        exit 2
        ;;
esac
