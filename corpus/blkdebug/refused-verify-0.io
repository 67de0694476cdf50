@reference
@stderr
@options driver=blkverify
read 0 512
