@with -f raw -d ignore
discard 0 4k
read 0 4k
