# What both hooks use: they get the job's ClassAd on standard input.
. "${0%/*}/settings.sh"
ad=$(cat)

# send FRAME: whether the daemon has taken it; HTCondor logs what a hook writes to standard error.
send() {
    [ "$(printf '%s\n' "$1" | talk 2> /dev/null)" = OK ] && return
    echo "not taken by CreditPiggy: $1" >&2
    return 1
}

# attribute NAME: its value in the ad, without what would end a value in a frame, or forge another.
attribute() {
    printf '%s\n' "$ad" | sed -n "s/^$1 *= *//p" | head -n 1 | tr -d '"\n' | tr -c 'A-Za-z0-9._:#@+-' _
}
