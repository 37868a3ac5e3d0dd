#!/bin/sh
# Run: cpsim exec --rule settled-once --rule no-slot-leaked -- sh test_run_jobs.sh
set -u
run_jobs="$(dirname "$0")/../run_jobs.sh"
failed=0

check() { # NAME COMMAND...
    name=$1
    shift
    if "$@"; then echo "ok - $name"; else echo "not ok - $name"; failed=1; fi
}

expect() { cpsim expect "$CREDITPIGGY_CONTROL" "$@"; }

run_two() { printf '%s\n' 'job-1 worker-7 echo 1000' 'job-2 worker-8 exit 3' | sh "$run_jobs"; }

run_refused() { ! echo "job-3 worker-7 touch ran" | sh "$run_jobs" && [ ! -e ran ]; }

check "both jobs run" run_two
check "what succeeds is credited" expect claimed job-1 --machine worker-7 --credits 5 --counters job/events=1000
check "what fails is discarded" expect discarded job-2 --reason exit-3
cpsim faults add daemon.error:kind=alloc,nth=1
check "what is not allocated does not run" run_refused
exit "$failed"
