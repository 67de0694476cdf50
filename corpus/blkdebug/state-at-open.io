@with -f raw
read 0 512
