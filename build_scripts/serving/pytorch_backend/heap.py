"""Keep the memory of large tensors in the process instead of asking the system for it in every batch.

By default glibc returns each large block to the system and maps it afresh on the next use: a text of 512 tokens took
1.45 times as long in bf16, 1.05 times in fp32.
"""

import ctypes

# Names and numbers of mallopt, <malloc.h>. Blocks of up to 32 MiB, glibc's limit, stay in the heap, and the heap does
# not shrink on its own.
MALLOPT = {"M_MMAP_THRESHOLD": (-3, 32 << 20), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def keep_large_blocks() -> ctypes.CDLL:
    """Set glibc's thresholds for this process; returns glibc, whose `malloc_trim` gives free memory back."""
    libc = ctypes.CDLL(None)
    for number, value in MALLOPT.values():
        libc.mallopt(number, value)
    return libc
