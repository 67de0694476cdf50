@reference
@stderr
@options driver=raw,file.driver=blkverify,file.raw.filename=reference,file.test.driver=raw,file.test.file.filename=image
truncate 128k
length
write -P 5 100 100
read -P 5 100 100
