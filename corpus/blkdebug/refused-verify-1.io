@reference
@stderr
@options driver=blkverify,raw.filename=reference
read 0 512
