"""Sets one variable for whatever is started or imported below, before torch's OpenMP reads it.

GOMP_SPINCOUNT: threads that compute spin while they wait for each other, and take the cores from everybody else; those
that sleep are woken too late for the next product. A server's requests/s with short texts on 2 cores, at concurrency 1,
4 and 16, on an AMD EPYC with a limit of 400: 193, 320, 550; 1000: 268, 383, 585; 3000: 262, 371, 551; without a limit
85, 128, 413. On an Intel Xeon of 2.8 GHz, 3000: 108, 150, 202; 6000: 121, 171, 288; 20000: 117, 191, 304; in another
run, 1000: 91, 188, 267; 20000: 125, 239, 355. A build beside five others that computed took over 16 minutes without a
limit, and 87 s with 1000. What the user has set wins.
"""

import os

# The version of the project; CHANGELOG.md says what changed.
__version__ = "1.1.0"

os.environ.setdefault("GOMP_SPINCOUNT", "6000")
