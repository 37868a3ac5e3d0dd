# What a site sets, on each machine that executes jobs.
export PATH=/usr/bin:/bin
EXPIRE=50400 # minutes: longer than any job runs

# This is OpenBSD's nc. Where nc is another, one of the others fits.
talk() { nc -w 5 creditpiggy.example.org 5667; }
# talk() { timeout 5 ncat creditpiggy.example.org 5667; }
# talk() { socat -t 5 -T 5 - TCP:creditpiggy.example.org:5667; }
