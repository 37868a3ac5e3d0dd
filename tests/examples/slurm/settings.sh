# What a site sets. Slurm gives its hooks no PATH and no SLURM_CONF.
export PATH=/usr/bin:/bin
export SLURM_CONF=/etc/slurm/slurm.conf
STATE=/var/lib/creditpiggy      # an empty folder of SlurmUser's, on a disk of the controller's
EXPIRE=50400                    # minutes: longer than any job runs
DAEMON=/var/run/creditapi.socket

# This is OpenBSD's nc. Where the daemon is elsewhere, or nc is another, one of the others fits.
talk() { nc -w 5 -U "$DAEMON"; }
# talk() { nc -w 5 127.0.0.1 5667; }
# talk() { timeout 5 ncat -U "$DAEMON"; }
# talk() { timeout 5 ncat 127.0.0.1 5667; }
# talk() { socat -t 5 -T 5 - "UNIX-CONNECT:$DAEMON"; }
# talk() { socat -t 5 -T 5 - TCP:127.0.0.1:5667; }
