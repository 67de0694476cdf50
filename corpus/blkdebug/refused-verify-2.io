@reference
@stderr
@options driver=blkverify,raw.filename=nope,test.filename=image,test.driver=raw
read 0 512
