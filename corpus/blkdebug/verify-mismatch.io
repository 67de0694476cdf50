@reference
@stderr
@options driver=raw,file.driver=blkverify,file.raw.filename=rules,file.test.driver=raw,file.test.file.filename=image
read 0 4k
read 4k 512
