@with -f raw
truncate 2M
length
map
alloc 1M 4k
truncate 32k
map
alloc 0 64k
