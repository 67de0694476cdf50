@with -f raw
write 0 512
read 0 512
write -f 0 512
read 0 512
write -z 0 4k
read 0 512
