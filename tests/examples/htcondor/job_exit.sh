#!/bin/sh
# HOOK_JOB_EXIT: a run is over. The argument says how: exit, remove, hold or evict.
. "${0%/*}/creditpiggy.sh"

slot=$(attribute CreditPiggySlot)
[ -n "$slot" ] || exit 0 # it has none, for the daemon was away

case $(attribute RequestCpus) in
    '' | *[!0-9]*) cpus=1 ;; # it is an expression
    *) cpus=$(attribute RequestCpus) ;;
esac
cpu_s=$((($(date +%s) - $(attribute CreditPiggyBegan)) * cpus))
[ "$cpu_s" -ge 0 ] || cpu_s=0 # the clock was set

send "counters,slot=$slot,job/cpuusage=$cpu_s"
if [ "$1" != exit ]; then
    send "discard,slot=$slot,reason=$1"
elif [ "$(attribute ExitBySignal | tr A-Z a-z)" = true ]; then
    send "discard,slot=$slot,reason=signal-$(attribute ExitSignal)"
elif [ "$(attribute ExitCode)" != 0 ]; then
    send "discard,slot=$slot,reason=exit-$(attribute ExitCode)"
else
    send "claim,slot=$slot,machine=$(uname -n),credits=$((cpu_s / 60 + 1))"
fi
exit 0
