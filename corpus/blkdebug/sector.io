@with -f raw
read 0 4k
read 0 4608
read 4k 1
read 4608 512
write 3k 2k
write -z 4k 512
discard 4k 4k
flush
