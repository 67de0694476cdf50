@with -f raw
read 0 512
read 0 512
