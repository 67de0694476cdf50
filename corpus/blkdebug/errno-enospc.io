@with -f raw -t writeback
read 0 4k
write -P 7 4k 4k
write -z 8k 4k
write -z -u 12k 4k
discard 16k 4k
flush
alloc 0 64k
map
read -v 4k 16
