@with -f raw
read 4k 512
read 5k 512
