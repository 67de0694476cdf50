@with -f raw
read 2k 512
read 0 512
write 2k 512
write 4k 512
