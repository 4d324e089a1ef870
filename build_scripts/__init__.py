"""Set OpenMP's spin limit for every process of this project, before torch loads OpenMP.

GOMP_SPINCOUNT bounds how long an idle OpenMP thread spins before it sleeps. A spinning thread takes its core from other
processes; a sleeping one wakes up too late for the next product. A value that the user has set wins.

Requests/s of a server with short texts on 2 cores, at concurrency 1, 4 and 16:

    limit   AMD EPYC         Intel Xeon 2.8 GHz   the same, another run
    400     193, 320, 550
    1000    268, 383, 585                         91, 188, 267
    3000    262, 371, 551    108, 150, 202
    6000                     121, 171, 288
    20000                    117, 191, 304        125, 239, 355
    none    85, 128, 413

Beside five other busy programs, a build took over 16 minutes without a limit and 87 s with 1000.
"""

import os

# The version of the project; CHANGELOG.md says what changed.
__version__ = "2.0.0"

os.environ.setdefault("GOMP_SPINCOUNT", "6000")
