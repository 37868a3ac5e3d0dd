#!/bin/sh
# PrologSlurmctld: a run of a job begins, and has a slot of its own.
. "${0%/*}/creditpiggy.sh"

if [ "$1" != alone ]; then
    setsid "$0" alone # Slurm kills a prolog whose job is cancelled, with its process group: this one goes on
    exit 0            # whatever became of it: no job waits for its credit
fi

began=$(date +%s)
slot=$SLURM_CLUSTER_NAME-$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_TASK_ID" ] || slot=$SLURM_CLUSTER_NAME-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
[ "${SLURM_JOB_RESTART_COUNT:-0}" = 0 ] || slot=$slot-r$SLURM_JOB_RESTART_COUNT

if [ -e "$STATE/$SLURM_JOB_ID" ]; then
    read -r left rest < "$STATE/$SLURM_JOB_ID"
    [ "$left" != "$slot" ] || exit 0 # the controller was restarted, and begins again
    [ "$left" -ge "$began" ] 2> /dev/null || rm "$STATE/$SLURM_JOB_ID" # of an earlier run, one of whose hooks was not run
fi
if send "alloc,slot=$slot,min=1,expire=$EXPIRE"; then
    send "meta,slot=$slot,user=$(clean "$SLURM_JOB_USER"),partition=$(clean "$SLURM_JOB_PARTITION"),name=$(clean "$SLURM_JOB_NAME")"
else
    slot=none
fi
if over=$(meet "$SLURM_JOB_ID" "$slot"); then
    settle "$slot" $over
fi
