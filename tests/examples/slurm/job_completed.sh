#!/bin/sh
# JobCompLoc of jobcomp/script: a run of a job is over, or the job is, which may never have run.
. "${0%/*}/creditpiggy.sh"

case $JOBSTATE in
    RESIZING) exit 0 ;;
    PENDING | REQUEUE*) how=requeued ;; # the run is over, and the job waits for another
    *) how=$(clean "$JOBSTATE" | tr A-Z a-z) ;;
esac
[ -n "$NODES" ] || exit 0 # it was cancelled before it began

cpu_s=$(((END - START) * PROCS))
[ "$cpu_s" -ge 0 ] || cpu_s=0 # the clock was set
machine=$(scontrol show hostnames "$NODES" | head -n 1)
over="$END $machine $cpu_s $(clean "$EXITCODE") $how"
if slot=$(meet "$JOBID" "$over"); then
    settle "$slot" $over
fi
