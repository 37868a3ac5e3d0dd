#!/bin/sh
# Runs jobs one after the other, and has each credited: `run_jobs.sh < jobs`, a line "JOB MACHINE COMMAND..." each.
# CREDITPIGGY_ENDPOINT is the socket of the CreditPiggy daemon.
set -eu

credit() {
    answer=$(printf '%s\n' "$1" | nc -U "$CREDITPIGGY_ENDPOINT")
    if [ "$answer" != OK ]; then
        echo "not taken by CreditPiggy: $1" >&2
        return 1
    fi
}

status=0
while read -r job machine command; do
    credit "alloc,slot=$job,credits=5" || { status=1; continue; }
    if events=$(sh -c "$command" < /dev/null); then
        credit "counters,slot=$job,job/success=1,job/events=$events" || status=1
        credit "claim,slot=$job,machine=$machine" || status=1
    else
        credit "discard,slot=$job,reason=exit-$?" || status=1
    fi
done
exit "$status"
