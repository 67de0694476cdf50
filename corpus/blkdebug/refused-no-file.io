@stderr
@with -f raw
@name blkdebug:nope:image
read 0 512
