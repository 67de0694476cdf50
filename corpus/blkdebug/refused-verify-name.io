@reference
@stderr
@with -f raw
@name blkverify:image
read 0 512
