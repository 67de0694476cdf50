@with -f raw
alloc 0 4k
alloc 0 4k
map
