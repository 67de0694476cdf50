@with -f raw
read 0 0
write 0 0
write -z 0 0
discard 0 0
