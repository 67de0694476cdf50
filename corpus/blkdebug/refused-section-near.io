@with -f raw
@stderr
read 0 512
