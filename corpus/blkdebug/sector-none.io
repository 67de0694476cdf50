@with -f raw
read 0 64k
