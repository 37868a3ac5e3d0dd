#!/bin/sh
# HOOK_PREPARE_JOB: a run of a job begins, and has a slot of its own. What it prints becomes part of the ad.
. "${0%/*}/creditpiggy.sh"

slot=$(attribute GlobalJobId)#$(attribute NumShadowStarts)
if send "alloc,slot=$slot,min=1,expire=$EXPIRE"; then
    send "meta,slot=$slot,owner=$(attribute Owner)"
    echo "CreditPiggySlot = \"$slot\""
    echo "CreditPiggyBegan = $(date +%s)"
fi
exit 0 # whatever became of it: no job waits for its credit
