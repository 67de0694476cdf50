@stderr
@with -f raw
@name blkdebug:image
read 0 512
