@stderr
@with -f raw
@name blkdebug::
read 0 512
