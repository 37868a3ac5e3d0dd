# What both hooks use.
. "${0%/*}/settings.sh"

# send FRAME: whether the daemon has taken it; what it has not is kept for a person to look at.
send() {
    [ "$(printf '%s\n' "$1" | talk 2> /dev/null)" = OK ] && return
    printf '%s\n' "$1" >> "$STATE/not-taken"
    return 1
}

# clean TEXT: the text without what would end a value, or forge another.
clean() {
    printf %s "$1" | tr -c 'A-Za-z0-9._:+-' _
}

# meet JOB TEXT: of the two hooks of a run, the first leaves its text and fails; the second prints the first one's.
meet() {
    printf '%s\n' "$2" > "$STATE/$1.$$"
    if ln "$STATE/$1.$$" "$STATE/$1" 2> /dev/null; then
        rm "$STATE/$1.$$"
        return 1
    fi
    cat "$STATE/$1" || return
    rm "$STATE/$1" "$STATE/$1.$$"
}

# settle SLOT END MACHINE CPU_SECONDS EXIT HOW: a credit for each minute of a CPU that was begun, if the run succeeded.
settle() {
    [ "$1" != none ] || return 0
    send "counters,slot=$1,job/cpuusage=$4"
    case $6 in
        completed | failed) send "meta,slot=$1,exit=$5" ;; # of all others, Slurm does not know it yet, and says 0:0
    esac
    if [ "$6" = completed ]; then
        send "claim,slot=$1,machine=$3,credits=$(($4 / 60 + 1))"
    else
        send "discard,slot=$1,reason=$6"
    fi
}
