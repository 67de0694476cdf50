@with -f raw
write 0 512
read 0 512
