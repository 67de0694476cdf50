@with -f raw
alloc 0 4k
alloc 4k 4k
alloc 4608 512
alloc 5k 4k
