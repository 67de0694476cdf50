@with -f raw
read 0 64k
read 65535 1
