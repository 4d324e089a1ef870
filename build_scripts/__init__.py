"""Sets one variable for whatever is started or imported below, before torch's OpenMP reads it.

GOMP_SPINCOUNT: threads that compute spin while they wait for each other, and take the cores from everybody else. On 2
cores with short texts, a server's requests/s at concurrency 1, 4 and 16 were 193, 320, 550 with a limit of 400; 268,
383, 585 with 1000; 262, 371, 551 with 3000; without a limit 85, 128, 413. A build beside five others that computed took
over 16 minutes without a limit, and 87 s with this one. What the user has set wins.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
