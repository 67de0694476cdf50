@with -f raw -t writeback
flush
read 0 512
flush
write 0 512
read 0 512
flush
read 0 512
write -z 4k 4k
read 4k 512
discard 8k 4k
