@reference
@with -f raw
@name blkverify:reference:image
read 0 4k
write -P 7 100 5000
read -P 7 100 5000
read 0 64k
flush
length
map
alloc 0 4k
discard 0 4k
read 0 4k
