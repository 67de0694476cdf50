@with -f raw
read 4097 100
read 4095 2
write 4097 100
write 4000 97
